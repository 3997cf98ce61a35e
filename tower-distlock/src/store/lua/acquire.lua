-- Asks for a lock.
--
-- KEYS     the lock, the line, who is in line, the mark of the owner
-- ARGV     terms, memory, `c` or `n`; to stand in line, the command to publish with and the channel
-- Answer   if granted {1, fence, now}, or the time in digits if that is both; {2, remaining, now, instance} if not; {0} if abandoned;
--          {-2, seats} if it is held as another kind of lock; {-1} if the layout is unknown
local got = redis.call('MGET', KEYS[1], KEYS[4])
local value, terms = got[1], ARGV[1]
-- Where nobody has it and nobody waits: before any function is made, and without numbers, which take longer than all of this.
if not got[2] and ARGV[3] == 'c' then
  local micros = t[2]
  local clock = #micros == 6 and t[1] .. micros or t[1] .. sub('00000', #micros) .. micros
  if not value then
    local new = '1' .. clock .. '2' .. terms .. clock .. clock .. '00000000000000000000000000000000'
    -- MGET has no value for another type.
    return redis.call('SET', KEYS[1], new, 'PX', ARGV[2], 'NX') and clock or { -1 }
  elseif #value == 73 and byte(value) == 49 and byte(value, 18) % 2 == 0 and sub(value, 2, 17) < clock
    and sub(value, 19, 41) == sub(terms, 1, 23) then
    redis.call('SET', KEYS[1], '1' .. clock .. '0' .. terms .. clock .. clock .. sub(value, 42), 'PX', ARGV[2])
    return clock
  end
end
