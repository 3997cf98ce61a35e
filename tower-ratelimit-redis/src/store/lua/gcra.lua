-- The generic cell rate algorithm: the last moment at which it was charged (8 bytes), and the one at which the bucket is full again (8).
size[3] = 16

used[3] = function(value, at, span)
  local last, full = unpack('<I8I8', value, at)
  local debt = max(full - max(last, now), 0)
  local rest = debt % span
  return min((debt - rest) / span + (rest > 0 and 1 or 0), 4294967295), now < last
end

charged[3] = function(value, at, span, units, _, _, burst)
  local debt = 0
  if at then
    local last, full = unpack('<I8I8', value, at)
    debt = max(full - max(last, now), 0)
  end
  if burst then
    -- A debt beyond that would be forgotten before it is paid.
    debt = min(debt + units * span, 2 * burst * span, 63244800000000)
  end
  return pack('<I8I8', now, now + debt)
end
