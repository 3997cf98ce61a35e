-- Asks for locks and lets go of locks, those of many callers in the order in which they came; each only where nobody else has it and
-- nobody waits. Of what that does not decide nothing is changed: its caller asks by itself.
--
-- KEYS     of each the lock, and if it is asked for the mark of the owner
-- ARGV     of each a letter in one word: `a` to ask for it by the clock, `r` to release it; then of each its terms
-- Answer   {the time in digits, which is the fence of what is granted; of each in one word `1` if it is done, else `0`}
local got, stored, done, at = redis.call('MGET', unpack(KEYS)), {}, {}, 0
local memory, keep
for n = 1, #ARGV[1] do
  at = at + 1
  local key, terms, new = KEYS[at], ARGV[n + 1]
  -- Another one may have come to it in this call.
  local value = stored[key] or got[at]
  if byte(ARGV[1], n) == 114 then
    new = mine(value, terms)
  else
    at = at + 1
    new = not got[at] and free(value, terms)
  end
  if new and sub(terms, 11, 23) ~= memory then
    memory = sub(terms, 11, 23)
    keep = string.format('%.0f', memory)
  end
  -- MGET has no value for another type.
  if new and redis.call('SET', key, new, 'PX', keep, value and 'XX' or 'NX') then
    stored[key], done[n] = new, '1'
  else
    done[n] = '0'
  end
end
return { clock, table.concat(done) }
