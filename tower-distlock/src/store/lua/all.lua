-- Asks for several locks by the clock: for all of them or none, each only where nobody else has it and nobody waits.
--
-- KEYS     of each the lock and the mark of the owner
-- ARGV     memory, then of each its terms
-- Answer   the fence of each in digits, which is the time of the grant; nil if they are not granted, and nothing is changed then
local got, new = redis.call('MGET', unpack(KEYS)), {}
-- The answer to the same question was lost: all of them were granted at one time, and to nobody else.
local same = got[1] and sub(got[1], 2, 17)
for n = 1, #ARGV - 1 do
  local value, terms = got[2 * n - 1], ARGV[n + 1]
  if not value or #value ~= #terms + 82 or byte(value) ~= 49 or sub(value, 2, 17) ~= same or sub(value, 19, -65) ~= terms
    or got[2 * n] or clock - sub(value, -64, -49) >= sub(terms, 56, 71) + 0 then
    same = nil
    break
  end
end
if same then
  return same
end
for n = 1, #ARGV - 1 do
  local value = got[2 * n - 1]
  new[n] = not got[2 * n] and free(value, ARGV[n + 1])
  -- MGET has no value for another type, GET has an error.
  if not new[n] or not value and redis.pcall('GET', KEYS[2 * n - 1]) then
    return false
  end
end
for n = 1, #new do
  redis.call('SET', KEYS[2 * n - 1], new[n], 'PX', ARGV[1])
end
return clock
