-- Renews or releases permits that are held. What has ended is not brought back.
--
-- KEYS[1]  the value of a subject
-- ARGV     1 to renew, 0 to release; the span of the lease in microseconds; the names of the permits (8 bytes each)
-- Answer   of each permit 1 if it was held until now, else 0; or 0 in place of a list where the layout is unknown
local renew, lease, names = ARGV[1] == '1', tonumber(ARGV[2]), ARGV[3]
local answer, wanted = {}, {}
for n = 1, #names / 8 do
  answer[n], wanted[sub(names, 8 * n - 7, 8 * n)] = 0, n
end

-- The permits that are left of those of a state.
local function after(state, span)
  local kept = {}
  for p = 3, #state, 20 do
    local permit = sub(state, p, p + 19)
    local n = wanted[sub(permit, 1, 8)]
    if n then
      answer[n] = 1
      permit = renew and sub(permit, 1, 8) .. pack('<I8', now + span) .. sub(permit, 17) or nil
    end
    kept[#kept + 1] = permit
  end
  return pack('<I2', #kept) .. table.concat(kept)
end

local value = redis.pcall('GET', KEYS[1])
local places = value and walk(value)
if value and not places then
  return 0
end
if places then
  local written = sub(value, 1, 22 + 13 * #places)
  for _, counter in ipairs(places) do
    local kind, at, span = counter[1], counter[2], counter[3]
    local _, _, state = count('', value, at, span, 0, 4294967295, kind)
    if kind == 7 and span == lease then
      state = after(state, span)
    end
    written = written .. state
  end
  -- As long as after a charge: whatever is counted besides lasts no longer than that, but for a block.
  local keep, blocked = unpack('<I8I8', value, 7)
  redis.call('SET', KEYS[1], written, 'PX', math.max(keep, math.ceil((blocked - now) / 1000) + 1, 1))
end
return answer
