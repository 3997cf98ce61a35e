-- Prolongs leases. The keys are of any slots where one server has them all.
--
-- KEYS     locks
-- ARGV     `k` to keep the ttl that they have, or `t` for that of the terms from now on; then of each its terms
-- Answer   of each 1 if it is held, 0 if nobody holds it, 2 if somebody else does, -1 if the layout is unknown
local outcomes = {}
for n, key in ipairs(KEYS) do
  if not read(redis.pcall('GET', key)) then
    outcomes[n] = -1
  else
    local terms = ARGV[n + 1]
    outcomes[n] = again(terms, ARGV[1] == 't' and sub(terms, 56, 71)) and 1 or without(terms)
    store(key)
  end
end
return outcomes
