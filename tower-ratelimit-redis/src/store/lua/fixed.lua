-- The fixed window, aligned to the calendar (kind 5) or from the first call on (kind 6): its beginning (8 bytes), its count (4).
for kind = 5, 6 do
  size[kind] = 12

  local function window(value, at, span)
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
    return start, count, back
  end

  used[kind] = function(value, at, span)
    local _, count, back = window(value, at, span)
    return count, back
  end

  charged[kind] = function(value, at, span, units)
    local start, count = window(value, at, span)
    return pack('<I8I4', start, count + units)
  end
end
