-- Renews or releases permits that are held. What has ended is not brought back.
--
-- KEYS[1]  the value of a subject
-- ARGV     1 to renew, 0 to release; the span of the lease in microseconds; the names of the permits (8 bytes each)
-- Answer   of each permit 1 if it was held until now, else 0
local renew, lease, names = ARGV[1] == '1', tonumber(ARGV[2]), ARGV[3]
local answer, wanted = {}, {}
for n = 1, #names / 8 do
  answer[n], wanted[sub(names, 8 * n - 7, 8 * n)] = 0, n
end

local value = redis.pcall('GET', KEYS[1])
for _, counter in ipairs(value and walk(value) or {}) do
  local kind, at, span = counter[1], counter[2], counter[3]
  if kind == 7 and span == lease then
    local permits, count = held(value, at, span)
    local kept = {}
    for p = 1, count do
      local permit = permits[p]
      local name = wanted[sub(permit, 1, 8)]
      if name then
        answer[name] = 1
        permit = renew and sub(permit, 1, 8) .. pack('<I8', now + span) .. sub(permit, 17) or nil
      end
      kept[#kept + 1] = permit
    end
    value = sub(value, 1, at - 1) .. pack('<I2', #kept) .. table.concat(kept) .. sub(value, at + size[7](value, at))
    -- As long as after a charge: whatever is counted besides lasts no longer than that.
    redis.call('SET', KEYS[1], value, 'PX', max(unpack('<I8', value, 7), 1))
    break
  end
end
return answer
