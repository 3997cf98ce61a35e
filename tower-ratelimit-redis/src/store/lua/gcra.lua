-- The generic cell rate algorithm: the moment at which the bucket is full again (8 bytes), and the last one at which it was charged (8).
local gcra_size = 16

local function gcra(front, value, at, span, units, room, _, _, _, most, kept)
  local last, debt = now, 0
  if at then
    local full
    full, last = unpack('<I8I8', value, at)
    debt = full - (last > now and last or now)
    if debt < 0 then
      debt = 0
    end
  end
  local rest = debt % span
  local used = (debt - rest) / span + (rest > 0 and 1 or 0)
  if used > 4294967295 then
    used = 4294967295
  end
  if used > room then
    return used, now < last
  elseif used + units > 4294967295 then
    units = 4294967295 - used
  end
  if kept and (debt > 0 or units == 0) then
    most = kept
  end
  debt = debt + units * span
  if most then
    -- A debt beyond that would be forgotten before it is paid.
    local greatest = 2 * most * span
    if greatest > 63244800000000 then
      greatest = 63244800000000
    end
    if debt > greatest then
      debt = greatest
    end
  end
  return used, now < last, front .. pack('<I8I8', now + debt, now)
end
