-- Asks for several locks by the clock: for all of them or none, each only where nobody else has it and nobody waits.
--
-- KEYS     of each the lock and the mark of the owner
-- ARGV     memory, then of each its terms
-- Answer   the time in digits, which is the fence of each; nil if they are not granted, and nothing is changed then
local got, new = redis.call('MGET', unpack(KEYS)), {}
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
