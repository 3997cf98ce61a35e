-- Those who wait, and what is granted.

local function has_room(terms)
  local first, most = holders[1], tonumber(sub(terms, 1, 10))
  if not first then
    return true
  end
  local shared = sub(terms, 72, 72) == 's' and sub(first[3], 17, 17) == 's'
  return shared and (most == 0 or #holders < most)
end

local function grant(terms, lease, way)
  fresh, fence = fence == 0, fence + 1
  if way == 'c' and now > fence then
    fence = now
  end
  seats, changed, keep = sub(terms, 1, 10), true, math.max(keep, tonumber(sub(terms, 11, 23)))
  local text = digits(fence)
  holders[#holders + 1] = { sub(terms, 24, 55), now + lease, sub(terms, 56), text }
  return text
end

-- What is known of who waits; nothing if it was not heard of for too long.
local function waits(owner)
  local waiter = redis.call('HGET', KEYS[3], owner)
  return waiter and tonumber(sub(waiter, 1, 16)) > now and waiter
end

local function leave(owner)
  redis.call('ZREM', KEYS[2], owner)
  redis.call('HDEL', KEYS[3], owner)
end

-- The first in line. Who is gone and would be that is forgotten.
local function first_in_line()
  while lined do
    local owner = redis.call('ZRANGE', KEYS[2], 0, 0)[1]
    if not owner then
      lined, changed = false, true
      return
    end
    local waiter = waits(owner)
    if waiter then
      return owner, waiter
    end
    leave(owner)
  end
end

-- Grants it to those who are next, as long as there is room. Who asks hears of it by the answer.
local function hand_over(asker)
  local owner, waiter = first_in_line()
  while owner do
    local channel = 93 + sub(waiter, 91, 92)
    local terms = sub(waiter, 19, channel - 1)
    if not has_room(terms) then
      return
    end
    leave(owner)
    -- Who asks has it for all of its time; who is told has to say first that it heard.
    local ttl = tonumber(sub(terms, 56, 71))
    local text = grant(terms, owner == asker and ttl or math.min(ttl, 1000000), sub(waiter, 17, 17))
    if owner ~= asker then
      local command = sub(waiter, 18, 18) == 's' and 'SPUBLISH' or 'PUBLISH'
      sent[#sent + 1] = { command, sub(waiter, channel), '1' .. text .. digits(now) .. owner }
    end
    owner, waiter = first_in_line()
  end
end

-- Sends the grants that are stored by now. Who is not reached, for whatever reason, asks again before long.
local function send()
  for _, grant in ipairs(sent) do
    redis.pcall(grant[1], grant[2], '\1\0\0\0\0\0\0\0\0' .. grant[3])
  end
end

-- Has who asks, by these terms and the arguments from `at` on, stand in line, or notes that it is still there.
local function line_up(terms, at)
  local owner = sub(terms, 24, 55)
  if not waits(owner) then
    local latest = redis.call('ZRANGE', KEYS[2], -1, -1, 'WITHSCORES')[2]
    redis.call('ZADD', KEYS[2], math.max(now, (latest or 0) + 1), owner)
  end
  local way = ARGV[at] .. (ARGV[at + 1] == 'SPUBLISH' and 's' or 'p')
  redis.call('HSET', KEYS[3], owner, digits(now + 3000000) .. way .. terms .. ARGV[at + 2])
  -- Longer than anybody in it is believed to wait.
  redis.call('PEXPIRE', KEYS[2], 6000)
  redis.call('PEXPIRE', KEYS[3], 6000)
  -- The line is seen as long as the lock is stored.
  lined, changed, keep = true, true, math.max(keep, 3000)
end

-- What is held is held as what is asked for.
local function agrees(terms)
  return not holders[1] or seats == sub(terms, 1, 10)
end

-- What came of it for who asked.
local function answer(terms)
  local _, mine = find(sub(terms, 24, 55))
  if mine then
    return { 1, tonumber(mine[4]), now }
  end
  local first
  for _, holder in ipairs(holders) do
    if not first or holder[2] < first[2] then
      first = holder
    end
  end
  return first and { 2, first[2] - now, now, sub(first[3], 20) } or { 2, 0, now, '' }
end
