-- Lets go of a lock, or of a place in line.
--
-- KEYS     the lock, the line, who is in line, the mark of the owner; the mark of who has it next
-- ARGV     terms; memory; `r` to release, `a` if abandoned; the ttl in milliseconds; then, if it is not for who is next in line, `p` to
--          pass or `y` to yield it, and the arguments of acquire.lua for who has it next
-- Answer   1 if it was held, 0 if nobody holds it, 2 if somebody else does; with somebody who has it next, {that, ...} and what
--          acquire.lua answers; -1 if the layout is unknown, {-2, seats} if it is held as another kind of lock
local value, terms = redis.pcall('GET', KEYS[1]), ARGV[1]
-- Where nobody else has it and nobody waits: before any function is made, which takes longer than all of this.
if value and #value == #terms + 82 and sub(value, 19, -65) == terms and byte(value) == 49 and byte(value, 18) % 2 == 0
  and ARGV[3] == 'r' and not ARGV[5] and t[1] * 1000000 + t[2] - sub(value, -64, -49) < sub(terms, 56, 71) + 0 then
  -- The owner stays as the last to let go: the same is known again if the answer is lost.
  redis.call('SET', KEYS[1], sub(value, 1, 73), 'PX', ARGV[2])
  return 1
end
