-- Decides about a call under all limits of a policy: charged to all of them or to none. A refusal writes nothing, but for new
-- heads where the clock went back; without them, refusals alone would never let the counts age.
--
-- KEYS[1]  the counts of one subject
-- ARGV     cost, ttl of the key in milliseconds, then the window in microseconds and the maximum of each limit
-- Answer   1 admitted, 0 refused, 2 unknown layout; the time in microseconds; the counts as they are stored now
--
-- The value: one byte version, one byte number of rings; each ring is 152 bytes, little endian: window (8 bytes), head (8), and
-- 34 sums modulo 2^32 (4 each): what was counted before the oldest of 33 buckets, and up to the end of each of them, the last
-- being the bucket `head`. So what is counted in a run of buckets is one difference, and no sum can contradict its parts. Here a
-- cost of 0 is a look. What the numbers mean, and why this is exact, is told in ring.rs; whose the rings are, in rings.rs.
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
  if version ~= 1 or not count or count < 1 or count > 16 or #value ~= 2 + 152 * count then
    return { 2, now, '' }
  end
end
if cost == 0 then
  return { 1, now, value }
end

local pack, unpack, sub = struct.pack, struct.unpack, string.sub
local limits = (#ARGV - 2) / 2
local rings, stored, found, refused, back, ttl = string.char(1, limits), limits, 0, false, false, ARGV[2]
-- After the limits of the policy come the windows of rings that it does not have, if there are any.
local foreign, last, l = nil, limits, 0
while l < last do
  l = l + 1
  local window, max
  if l <= limits then
    window, max = tonumber(ARGV[2 * l + 1]), tonumber(ARGV[2 * l + 2])
  else
    window = foreign[l - limits]
  end
  local phase = now % window
  local index = (now - phase) / window * 32 + math.floor(phase * 32 / window)

  -- In the place of its limit, most often.
  local at = 152 * l - 149
  if at > #value or unpack('<I8', value, at) ~= window then
    at = 3
    while at < #value and unpack('<I8', value, at) ~= window do
      at = at + 152
    end
  end
  local passed, total, sum = 33, 0, 0
  if at < #value then
    passed, found = index - unpack('<I8', value, at + 8), found + 1
    if passed < 0 then
      -- The head becomes the bucket of now, and nothing expires.
      value = sub(value, 1, at + 7) .. pack('<I8', index) .. sub(value, at + 16)
      passed, back = 0, true
    end
    if passed <= 32 then
      sum = unpack('<I4', value, at + 148)
      total = (sum - unpack('<I4', value, at + 16 + 4 * passed)) % 4294967296
    end
  end

  local units = cost
  if max then
    refused = refused or total + cost > max
  elseif total == 0 or stored == limits + 8 then
    units = nil
  else
    stored, units = stored + 1, math.min(cost, 4294967295 - total)
    ttl = math.max(ttl, math.ceil((window + math.ceil(window / 32)) / 1000) + 1)
  end

  if units and not refused then
    sum = pack('<I4', (sum + units) % 4294967296)
    if passed == 0 then
      rings = rings .. sub(value, at, at + 147) .. sum
    elseif passed <= 32 then
      local kept, newest = sub(value, at + 16 + 4 * passed, at + 151), sub(value, at + 148, at + 151)
      rings = rings .. pack('<I8I8', window, index) .. kept .. string.rep(newest, passed - 1) .. sum
    else
      rings = rings .. pack('<I8I8', window, index) .. string.rep('\0', 132) .. sum
    end
  end

  if l == limits and found < count then
    local known = {}
    for own = 1, limits do
      known[tonumber(ARGV[2 * own + 1])] = 'own'
    end
    foreign = {}
    for at = 3, #value, 152 do
      local other = unpack('<I8', value, at)
      if known[other] == 'stored' or other < 1 or other > 31622400000000 then
        return { 2, now, '' }
      end
      if not known[other] then
        foreign[#foreign + 1] = other
      end
      known[other] = 'stored'
    end
    last = limits + #foreign
  end
end

if not refused then
  value = stored == limits and rings or string.char(1, stored) .. sub(rings, 3)
end
if back or not refused then
  redis.call('SET', KEYS[1], value, 'PX', ttl)
end
return { refused and 0 or 1, now, value }
