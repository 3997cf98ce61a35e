-- The sliding log: the number of entries (2 bytes), the sum of what was counted before them (4), and of each, oldest first, its time
-- (8) and the sum up to its end (4); sums are modulo 2^32.
local function log_size(value, at)
  return 6 + 12 * unpack('<I2', value, at)
end

local function log(front, value, at, span, units, room)
  local count = at and unpack('<I2', value, at) or 0
  -- By how much all are to be shifted since the clock went back.
  local shift = count > 0 and math.max(unpack('<I8', value, at + 12 * count - 6) - now, 0) or 0
  local over, most = 0, count
  while over < most do
    local middle = math.floor((over + most) / 2)
    if unpack('<I8', value, at + 6 + 12 * middle) - shift + span <= now then
      over = middle + 1
    else
      most = middle
    end
  end
  local before = at and unpack('<I4', value, at + 2 + 12 * over) or 0
  local sum = at and unpack('<I4', value, at + 2 + 12 * count) or 0
  local used = (sum - before) % 4294967296
  if used > room then
    return used, shift > 0
  elseif used + units > 4294967295 then
    units = 4294967295 - used
  end

  local kept = at and sub(value, at + 6 + 12 * over, at + 5 + 12 * count) or ''
  count = count - over
  if shift > 0 then
    local shifted = {}
    for e = 1, #kept, 12 do
      shifted[#shifted + 1] = pack('<I8', math.max(unpack('<I8', kept, e) - shift, 0)) .. sub(kept, e + 8, e + 11)
    end
    kept = table.concat(shifted)
  end
  if units == 0 then
    return used, shift > 0, front .. pack('<I2I4', count, before) .. kept
  end
  -- What is charged beyond the greatest limit joins the newest entry, which then counts from now on.
  if count > 0 and (count >= 1024 or unpack('<I8', kept, #kept - 11) >= now) then
    kept, count = sub(kept, 1, -13), count - 1
  end
  local newest = pack('<I8I4', now, (sum + units) % 4294967296)
  return used, shift > 0, front .. pack('<I2I4', count + 1, before) .. kept .. newest
end
