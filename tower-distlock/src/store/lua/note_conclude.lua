-- Replaces what is noted of a slot beside a lock. See store/notes.rs for the value.
--
-- KEYS     the note
-- ARGV     the slot (20 digits), the note as it is stored, for how many milliseconds it is kept
-- Answer   1 if it is stored, 0 if another slot or nothing is noted, -1 if the layout is unknown
local stored = redis.call('GET', KEYS[1])
if not stored then
  return 0
end
local layout, slot = string.match(stored, '^(.)(' .. string.rep('%d', 20) .. ')')
if layout ~= '1' then
  return -1
elseif slot ~= ARGV[1] then
  return 0
end
redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
return 1
