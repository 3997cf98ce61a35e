-- Asks for a lock.
--
-- KEYS     the lock, the line, who is in line, the mark of the owner
-- ARGV     terms, memory, `c` or `n`; to stand in line, the command to publish with and the channel
-- Answer   if granted {1, fence, now}, or the time in digits if that is both; {2, remaining, now, instance} if not; {0} if abandoned;
--          {-2, seats} if it is held as another kind of lock; {-1} if the layout is unknown
local got = redis.call('MGET', KEYS[1], KEYS[4])
local value, terms = got[1], ARGV[1]
-- Before all the functions are made, which takes longer than the rest of this.
local new = not got[2] and ARGV[3] == 'c' and free(value, terms)
if new then
  -- MGET has no value for another type.
  return redis.call('SET', KEYS[1], new, 'PX', ARGV[2], value and 'XX' or 'NX') and clock or { -1 }
end
