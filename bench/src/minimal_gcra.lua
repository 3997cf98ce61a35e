-- The least that a limiter can do: one time stamp for each key, in whole microseconds.
local t = redis.call('TIME')
local now = t[1] * 1000000 + t[2]
local interval, burst = tonumber(ARGV[1]), tonumber(ARGV[2])
local tat = math.max(tonumber(redis.call('GET', KEYS[1]) or now), now)
if tat + interval - burst > now then return 0 end
redis.call('SET', KEYS[1], string.format('%.0f', tat + interval), 'PX', 60000)
return 1
