-- Tells who holds a lock, and how many wait.
--
-- KEYS     the lock, the line, who is in line
-- Answer   {how many wait, and of each holder owner, instance, fence, remaining}, or -1 if the layout is unknown
if not read(redis.pcall('GET', KEYS[1])) then
  return -1
end
local seen = { 0 }
for _, waiter in ipairs(lined and redis.call('HVALS', KEYS[3]) or {}) do
  if tonumber(sub(waiter, 1, 16)) > now then
    seen[1] = seen[1] + 1
  end
end
for _, holder in ipairs(holders) do
  for _, told in ipairs({ holder[1], sub(holder[3], 20), tonumber(holder[4]), holder[2] - now }) do
    seen[#seen + 1] = told
  end
end
return seen
