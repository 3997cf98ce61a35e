-- The sliding counter: the number of this window (8 bytes), what was counted in the one before (4) and in this one (4).
size[2] = 16

used[2] = function(value, at, span)
  local phase = now % span
  local index, previous, current = unpack('<I8I4I4', value, at)
  local passed = (now - phase) / span - index
  if passed > 1 then
    return 0, false
  elseif passed == 1 then
    previous, current = current, 0
  end
  return min(current + ceil(previous * ((span - phase) / span)), 4294967295), passed < 0
end

charged[2] = function(value, at, span, units)
  local this = (now - now % span) / span
  local index, previous, current = this, 0, 0
  if at then
    index, previous, current = unpack('<I8I4I4', value, at)
  end
  if this - index > 1 then
    previous, current = 0, 0
  elseif this - index == 1 then
    previous, current = current, 0
  end
  return pack('<I8I4I4', this, previous, min(current + units, 4294967295))
end
