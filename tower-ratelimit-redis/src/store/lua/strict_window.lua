-- Decides about a call under all limits of a policy: charged to all of them or to none. A refusal writes nothing, but for new
-- heads where the clock went back; without them, refusals alone would never let the counts age.
--
-- KEYS[1]  the counts of one subject
-- ARGV     cost, ttl of the key in milliseconds, then the window in microseconds and the maximum of each limit
-- Answer   1 admitted, 0 refused, 2 unknown layout; the time in microseconds; the counts as they are stored now
--
-- The value: one byte version, one byte number of rings; each ring is 152 bytes, little endian: window (8 bytes), head (8),
-- total (4), and the counts of 33 buckets (4 each), oldest first, the last being that of the bucket `head`. Here a cost of 0
-- is a look. What the numbers mean, and why this is exact, is told in ring.rs.
local t = redis.call('TIME')
local now = t[1] * 1000000 + t[2]
local cost = tonumber(ARGV[1])

local value = redis.pcall('GET', KEYS[1]) or ''
if type(value) ~= 'string' then
  return { 2, now, '' }
end
local count = 0
if value ~= '' then
  local version
  version, count = string.byte(value, 1, 2)
  if version ~= 1 or #value ~= 2 + 152 * (count or 0) then
    return { 2, now, '' }
  end
end
if cost == 0 then
  return { 1, now, value }
end

local limits = (#ARGV - 2) / 2
local rings, refused, back = string.char(1, limits), false, false
for l = 1, limits do
  local window, max = tonumber(ARGV[2 * l + 1]), tonumber(ARGV[2 * l + 2])
  local phase = now % window
  local index = (now - phase) / window * 32 + math.floor(phase * 32 / window)

  local passed, total, first = 33, 0, nil
  for at = 3, #value, 152 do
    local stored, head, sum = struct.unpack('<I8I8I4', value, at)
    if stored == window then
      passed, total, first = index - head, sum, at + 20
      if passed < 0 then
        -- The head becomes the bucket of now, and nothing expires.
        value = string.sub(value, 1, at + 7) .. struct.pack('<I8', index) .. string.sub(value, at + 16)
        passed, back = 0, true
      end
      break
    end
  end

  if passed > 32 then
    total = 0
  else
    for at = first, first + 4 * (passed - 1), 4 do
      total = total - struct.unpack('<I4', value, at)
    end
  end
  refused = refused or total + cost > max

  if not refused then
    local kept, new = '', cost
    if passed == 0 then
      kept = string.sub(value, first, first + 127)
      new = struct.unpack('<I4', value, first + 128) + cost
    elseif passed > 32 then
      kept = string.rep('\0', 128)
    else
      kept = string.sub(value, first + 4 * passed, first + 131) .. string.rep('\0', 4 * passed - 4)
    end
    rings = rings .. struct.pack('<I8I8I4', window, index, total + cost) .. kept .. struct.pack('<I4', new)
  end
end

if not refused then
  value = rings
end
if back or not refused then
  redis.call('SET', KEYS[1], value, 'PX', ARGV[2])
end
return { refused and 0 or 1, now, value }
