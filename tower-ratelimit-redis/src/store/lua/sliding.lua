-- The sliding counter: the number of this window (8 bytes), what was counted in the one before (4) and in this one (4).
local sliding_size = 16

local function sliding(front, value, at, span, units, room)
  local phase = now % span
  local this = (now - phase) / span
  local index, previous, current = this, 0, 0
  if at then
    index, previous, current = unpack('<I8I4I4', value, at)
  end
  if this - index > 1 then
    previous, current = 0, 0
  elseif this - index == 1 then
    previous, current = current, 0
  end
  local used, back = current, this < index
  if previous > 0 then
    used = math.min(current + math.ceil(previous * ((span - phase) / span)), 4294967295)
  end
  if used > room then
    return used, back
  end
  current = math.min(current + math.min(units, 4294967295 - used), 4294967295)
  return used, back, front .. pack('<I8I4I4', this, previous, current)
end
