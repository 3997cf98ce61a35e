-- The sliding log: the number of entries (2 bytes), the sum of what was counted before them (4), and of each, oldest first, its time
-- (8) and the sum up to its end (4); sums are modulo 2^32.
size[4] = function(value, at)
  return 6 + 12 * unpack('<I2', value, at)
end

-- How many entries there are, how many of them are over, by how much all are to be shifted since the clock went back, and the sums
-- before the first that is not over and up to the end of the last.
local function entries(value, at, span)
  local count = unpack('<I2', value, at)
  local shift = count > 0 and max(unpack('<I8', value, at + 12 * count - 6) - now, 0) or 0
  local over, most = 0, count
  while over < most do
    local middle = floor((over + most) / 2)
    if unpack('<I8', value, at + 6 + 12 * middle) - shift + span <= now then
      over = middle + 1
    else
      most = middle
    end
  end
  return count, over, shift, unpack('<I4', value, at + 2 + 12 * over), unpack('<I4', value, at + 2 + 12 * count)
end

used[4] = function(value, at, span)
  local _, _, shift, before, sum = entries(value, at, span)
  return (sum - before) % 4294967296, shift > 0
end

charged[4] = function(value, at, span, units)
  if not at then
    return units > 0 and pack('<I2I4I8I4', 1, 0, now, units) or pack('<I2I4', 0, 0)
  end
  local count, over, shift, before, sum = entries(value, at, span)
  local kept = sub(value, at + 6 + 12 * over, at + 5 + 12 * count)
  if shift > 0 then
    local shifted = {}
    for e = 1, #kept, 12 do
      shifted[#shifted + 1] = pack('<I8', max(unpack('<I8', kept, e) - shift, 0)) .. sub(kept, e + 8, e + 11)
    end
    kept = table.concat(shifted)
  end
  count = count - over
  if units > 0 then
    -- What is charged beyond the greatest limit joins the newest entry, which then counts from now on.
    if count > 0 and (count >= 1024 or unpack('<I8', kept, #kept - 11) >= now) then
      kept, count = sub(kept, 1, -13), count - 1
    end
    kept, count = kept .. pack('<I8I4', now, (sum + units) % 4294967296), count + 1
  end
  return pack('<I2I4', count, before) .. kept
end
