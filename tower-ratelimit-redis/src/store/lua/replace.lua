-- Puts a value in the place of another, if that is still there.
--
-- KEYS[1]  the value of a subject
-- ARGV     the value that is expected, the one to store, for how many milliseconds
-- Answer   1 if it was there, else 0
if (redis.call('GET', KEYS[1]) or '') ~= ARGV[1] then
  return 0
end
redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
return 1
