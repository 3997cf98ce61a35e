-- Concurrency: the number of permits (2 bytes), and of each its name (8), the end of its lease (8) and its units (4).
size[7] = function(value, at)
  return 2 + 20 * unpack('<I2', value, at)
end

-- The permits that are still held, how many they are and their units, and whether the clock went back: no lease is longer than one.
local function held(value, at, span)
  local permits, count, units, back = {}, 0, 0, false
  for p = at + 2, at + 20 * unpack('<I2', value, at), 20 do
    local ends, of = unpack('<I8I4', value, p + 8)
    back = back or ends > now + span
    if ends > now then
      count, units = count + 1, units + of
      permits[count] = sub(value, p, p + 7) .. pack('<I8', min(ends, now + span)) .. sub(value, p + 16, p + 19)
    end
  end
  return permits, count, units, back
end

used[7] = function(value, at, span)
  local _, _, units, back = held(value, at, span)
  return min(units, 4294967295), back
end

charged[7] = function(value, at, span, units, _, permit)
  local permits, count = {}, 0
  if at then
    permits, count = held(value, at, span)
  end
  -- What has no name could not be released.
  if units > 0 and permit ~= '\0\0\0\0\0\0\0\0' and count < 1024 then
    count = count + 1
    permits[count] = permit .. pack('<I8I4', now + span, units)
  end
  return pack('<I2', count) .. table.concat(permits)
end
