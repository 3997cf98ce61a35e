-- Notes something of a slot beside a lock, if nothing is noted of that slot or a later one. See store/notes.rs for the value.
--
-- KEYS     the note
-- ARGV     the slot (20 digits), the note as it is stored, for how many milliseconds it is kept
-- Answer   nothing if it is stored, else what is noted, also in a layout that is not known here
local stored = redis.call('GET', KEYS[1])
if stored then
  local layout, slot = string.match(stored, '^(.)(' .. string.rep('%d', 20) .. ')')
  -- Of one length, texts of digits are in the order of the numbers.
  if layout ~= '1' or slot >= ARGV[1] then
    return stored
  end
end
redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
return false
