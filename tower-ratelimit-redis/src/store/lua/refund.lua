-- Takes units back from what they were charged to, as far as they still count.
--
-- KEYS[1]  the value of a subject
-- ARGV     the units; when they were charged, in microseconds; 1 if that was to the bucket after, else 0
-- Answer   the time in microseconds and the value as it is stored now, or 0 where the layout is unknown
local units, charged_at, ahead = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local refund = {}

-- From the bucket of that time, and so from all sums up to its end and later.
refund[1] = function(value, at, span)
  local phase = charged_at % span
  local index = (charged_at - phase) / span * 32 + math.floor(phase * 32 / span)
  local slot = index - unpack('<I8', value, at) + 32 + ahead
  if slot < 0 or slot > 33 then
    return sub(value, at, at + 155)
  end
  local first = at + 12 + 4 * slot
  local less = math.min((unpack('<I4', value, first) - unpack('<I4', value, first - 4)) % 4294967296, units)
  local state = sub(value, at, first - 1)
  for s = first, at + 144, 4 do
    state = state .. pack('<I4', (unpack('<I4', value, s) - less) % 4294967296)
  end
  return state .. sub(value, at + 148, at + 155)
end

refund[2] = function(value, at, span)
  local index, previous, current = unpack('<I8I4I4', value, at)
  local passed = index - (charged_at - charged_at % span) / span
  if passed == 0 then
    current = math.max(current - units, 0)
  elseif passed == 1 then
    previous = math.max(previous - units, 0)
  end
  return pack('<I8I4I4', index, previous, current)
end

refund[3] = function(value, at, span)
  local full, last = unpack('<I8I8', value, at)
  return pack('<I8I8', math.max(full - units * span, last, now), last)
end

refund[4] = function(value, at)
  local count, before = unpack('<I2I4', value, at)
  local state, less, past = { sub(value, at, at + 5) }, 0, before
  for e = at + 6, at + 12 * count - 6, 12 do
    local time, sum = unpack('<I8I4', value, e)
    if time == charged_at then
      less = math.min((sum - past) % 4294967296, units)
    end
    past = sum
    state[#state + 1] = sub(value, e, e + 7) .. pack('<I4', (sum - less) % 4294967296)
  end
  return table.concat(state)
end

for kind = 5, 6 do
  refund[kind] = function(value, at)
    local start, count = unpack('<I8I4', value, at)
    return pack('<I8I4', start, charged_at >= start and math.max(count - units, 0) or count)
  end
end

local value = redis.pcall('GET', KEYS[1])
if value then
  local places = walk(value)
  if not places then
    return { now, 0 }
  end
  local written = sub(value, 1, 22 + 13 * #places)
  for _, counter in ipairs(places) do
    local kind, at, span = counter[1], counter[2], counter[3]
    local _, _, state = count('', value, at, span, 0, 4294967295, kind)
    -- What is held is released, not refunded.
    written = written .. (refund[kind] and refund[kind](state, 1, span) or state)
  end
  value = written
  redis.call('SET', KEYS[1], value, 'KEEPTTL')
end
return { now, value or '' }
