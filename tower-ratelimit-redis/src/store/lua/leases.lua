-- Concurrency: the number of permits (2 bytes), and of each its name (8), the end of its lease (8) and its units (4).
local function leases_size(value, at)
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
      permits[count] = sub(value, p, p + 7) .. pack('<I8', math.min(ends, now + span)) .. sub(value, p + 16, p + 19)
    end
  end
  return permits, count, math.min(units, 4294967295), back
end

local function leases(front, value, at, span, units, room, _, _, costs)
  local permits, count, used, back = {}, 0, 0, false
  if at then
    permits, count, used, back = held(value, at, span)
  end
  if used > room then
    return used, back
  end
  units = math.min(units, 4294967295 - used)
  -- What has no name could not be released.
  local permit = costs and sub(costs, 5, 12) or ''
  if units > 0 and #permit == 8 and permit ~= '\0\0\0\0\0\0\0\0' and count < 1024 then
    count = count + 1
    permits[count] = permit .. pack('<I8I4', now + span, units)
  end
  return used, back, front .. pack('<I2', count) .. table.concat(permits)
end
