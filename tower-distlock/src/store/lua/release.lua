-- Lets go of a lock, or of a place in line.
--
-- KEYS     the lock, the line, who is in line, the mark of the owner; the mark of who has it next
-- ARGV     terms; memory; `r` to release, `a` if abandoned; the ttl in milliseconds; then, if it is not for who is next in line, `p` to
--          pass or `y` to yield it, and the arguments of acquire.lua for who has it next
-- Answer   1 if it was held, 0 if nobody holds it, 2 if somebody else does; with somebody who has it next, {that, ...} and what
--          acquire.lua answers; -1 if the layout is unknown, {-2, seats} if it is held as another kind of lock
local value, terms = redis.pcall('GET', KEYS[1]), ARGV[1]
-- Before all the functions are made, which takes longer than the rest of this.
local new = ARGV[3] == 'r' and mine(value, terms)
if new and not ARGV[5] then
  redis.call('SET', KEYS[1], new, 'PX', ARGV[2])
  return 1
end
-- Nobody is in line, so that nobody has to be yielded to.
new = new and ARGV[8] == 'c' and not redis.call('GET', KEYS[5]) and free(new, ARGV[6])
if new then
  redis.call('SET', KEYS[1], new, 'PX', ARGV[7])
  return { 1, 1, clock + 0, clock + 0 }
end
