-- Blocks a subject, or lifts that.
--
-- KEYS[1]  the value of the subject
-- ARGV     for how many microseconds, 0 to lift; the revision and for how many milliseconds a value is kept, where nothing is stored yet
-- Answer   1, or 0 where the layout is unknown
local time, revision, keep = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local value = redis.pcall('GET', KEYS[1]) or pack('<BBI4I8I8', 1, 0, revision, keep, 0)
if not walk(value) then
  return 0
end
local blocked = time > 0 and now + time or 0
-- As long as after a charge: whatever is counted besides lasts no longer than that. And as long as the block, which tells how long that
-- was meant to be.
local kept_for = math.max(unpack('<I8', value, 7), math.ceil(time / 1000))
local head = sub(value, 1, 6) .. pack('<I8I8', kept_for, blocked)
redis.call('SET', KEYS[1], head .. sub(value, 23), 'PX', kept_for + 1)
return 1
