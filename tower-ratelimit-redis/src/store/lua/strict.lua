-- The strict window: the bucket of now (8 bytes), then 35 sums modulo 2^32 (4 each): what was counted before the oldest of 34 buckets,
-- and up to the end of each of them, the last being the one ahead of now. So what is counted in a run of buckets is one difference.
size[1] = 148

used[1] = function(value, at, span)
  local phase = now % span
  local passed = (now - phase) / span * 32 + floor(phase * 32 / span) - unpack('<I8', value, at)
  if passed > 33 then
    return 0, false
  end
  local before = unpack('<I4', value, at + 8 + 4 * max(passed, 0))
  return (unpack('<I4', value, at + 144) - before) % 4294967296, passed < 0
end

charged[1] = function(value, at, span, units, ahead)
  local phase = now % span
  local index = (now - phase) / span * 32 + floor(phase * 32 / span)
  local passed = at and max(index - unpack('<I8', value, at), 0) or 34
  local present = ahead and 0 or units
  if passed > 33 then
    return pack('<I8', index) .. rep('\0', 132) .. pack('<I4I4', present, units)
  end
  local last = unpack('<I4', value, at + 144)
  if passed == 0 then
    present = present + unpack('<I4', value, at + 140)
  else
    present = present + last
  end
  local kept = sub(value, at + 8 + 4 * passed, at + 11 + 4 * min(passed + 32, 34))
  if passed > 2 then
    kept = kept .. rep(sub(value, at + 144, at + 147), passed - 2)
  end
  return pack('<I8', index) .. kept .. pack('<I4I4', present % 4294967296, (last + units) % 4294967296)
end
