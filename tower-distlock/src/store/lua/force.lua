-- Takes a lock from all who hold it.
--
-- KEYS     the lock, the line, who is in line
-- Answer   those who held it, or -1 if the layout is unknown
if not read(redis.pcall('GET', KEYS[1])) then
  return -1
end
local taken = {}
for place, holder in ipairs(holders) do
  taken[place] = holder[1]
end
if taken[1] then
  holders, changed = {}, true
end
hand_over(nobody)
store(KEYS[1])
send()
return taken
