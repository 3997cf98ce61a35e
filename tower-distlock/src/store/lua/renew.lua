-- Prolongs leases. The keys are of any slots where one server has them all.
--
-- KEYS     locks
-- ARGV     of each its terms
-- Answer   of each 1 if it is held, 0 if nobody holds it, 2 if somebody else does, -1 if the layout is unknown
local outcomes = {}
for n, key in ipairs(KEYS) do
  if not read(redis.pcall('GET', key)) then
    outcomes[n] = -1
  else
    outcomes[n] = again(ARGV[n]) and 1 or without(ARGV[n])
    store(key)
  end
end
return outcomes
