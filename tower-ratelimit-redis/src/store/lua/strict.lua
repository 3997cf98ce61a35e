-- The strict window: the bucket of now (8 bytes), then 35 sums modulo 2^32 (4 each): what was counted before the oldest of 34 buckets,
-- and up to the end of each of them, the last being the one ahead of now. So what is counted in a run of buckets is one difference.
-- Behind them the time at which it was charged (8).
local strict_size = 156

local function strict(front, value, at, span, units, room, _, ahead)
  local phase = now % span
  local part = phase * 32 / span
  local index = (now - phase) / span * 32 + part - part % 1
  -- How many buckets are over: up to 34, which are all.
  local passed, back, before, present, last = 34, false, 0, 0, 0
  if at then
    local head, oldest = unpack('<I8I4', value, at)
    passed, back = index - head, index < head
    if passed > 33 then
      passed = 34
    else
      present, last = unpack('<I4I4', value, at + 140)
      before = oldest
      if passed > 0 then
        before, present = unpack('<I4', value, at + 8 + 4 * passed), last
      end
    end
  end
  local used = (last - before) % 4294967296
  if used > room then
    return used, back
  elseif used + units > 4294967295 then
    units = 4294967295 - used
  end

  if not ahead then
    present = (present + units) % 4294967296
  end
  local newest = pack('<I4I4I8', present, (last + units) % 4294967296, now)
  if passed == 0 then
    return used, back, front .. sub(value, at, at + 139) .. newest
  elseif passed < 3 then
    passed = passed > 0 and passed or 0
    local kept = sub(value, at + 8 + 4 * passed, at + 139 + 4 * passed)
    return used, back, front .. pack('<I8', index) .. kept .. newest
  elseif passed > 33 then
    return used, back, front .. pack('<I8', index) .. string.rep('\0', 132) .. newest
  end
  local gone = string.rep(sub(value, at + 144, at + 147), passed - 2)
  return used, back, front .. pack('<I8', index) .. sub(value, at + 8 + 4 * passed, at + 147) .. gone .. newest
end
