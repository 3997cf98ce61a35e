-- The fixed window, aligned to the calendar (kind 5) or from the first call on (kind 6): its beginning (8 bytes), its count (4).
local fixed_size = 12

local function fixed(front, value, at, span, units, room, kind)
  local start, count, back = now, 0, false
  if at then
    start, count = unpack('<I8I4', value, at)
    back = now < start
  end
  local ended = now >= start + span
  if ended then
    count = 0
  end
  if back or ended or count == 0 then
    start = kind == 5 and now - now % span or now
  end
  if count > room then
    return count, back
  end
  return count, back, front .. pack('<I8I4', start, math.min(count + units, 4294967295))
end
