-- The value of a lock taken apart, and what is done to it.
local now, format = t[1] * 1000000 + t[2], string.format
local nobody = '00000000000000000000000000000000'
local fence, fresh, lined, last, seats, memory, holders, changed, keep, sent

local function digits(number)
  return format('%016.0f', number)
end

-- Takes a value apart and forgets leases that have ended. If the clock went back, none lasts longer than its ttl from now on.
-- Of a holder there are the owner, until when, the terms from the ttl on, and the fence.
local function read(value)
  fence, fresh, lined, last, seats, memory = 0, false, false, nobody, '', ''
  holders, changed, keep, sent = {}, false, 0, {}
  if not value then
    return true
  elseif type(value) == 'table' then
    -- Of any other error nothing follows for the lock.
    return sub(value.err, 1, 9) ~= 'WRONGTYPE' and error(value.err, 0)
  elseif #value < 73 or byte(value) ~= 49 then
    return false
  end
  local flags = tonumber(sub(value, 18, 18))
  fence, seats, memory, last = tonumber(sub(value, 2, 17)), sub(value, 19, 28), sub(value, 29, 41), sub(value, -32)
  if not fence or not flags then
    return false
  end
  fresh, lined = flags >= 2, flags % 2 == 1
  local at, size = 42, #value - 32
  while at <= size do
    local ttl, length = tonumber(sub(value, at + 32, at + 47)), tonumber(sub(value, at + 49, at + 50))
    local tail = length and at + 51 + length
    local begun = tail and tonumber(sub(value, tail, tail + 15))
    if not ttl or not begun or tail + 31 > size then
      return false
    end
    if begun > now then
      begun, changed = now, true
    end
    if begun + ttl > now then
      local owner, rest, of = sub(value, at, at + 31), sub(value, at + 32, tail - 1), sub(value, tail + 16, tail + 31)
      holders[#holders + 1] = { owner, begun + ttl, rest, of }
    else
      changed = true
    end
    at = tail + 32
  end
  return true
end

-- Stores it, if it was changed, for at least as long as before.
local function store(key)
  if not changed then
    return
  elseif fence == 0 then
    redis.call('DEL', key)
    return
  end
  local left = redis.call('PTTL', key)
  if keep > left then
    memory = format('%013.0f', keep)
  else
    keep = left
  end
  local new = { '1', digits(fence), (fresh and 2 or 0) + (lined and 1 or 0), seats, memory }
  for _, holder in ipairs(holders) do
    local begun = holder[2] - sub(holder[3], 1, 16)
    new[#new + 1] = holder[1] .. holder[3] .. digits(begun) .. holder[4]
  end
  new[#new + 1] = last
  -- What has less than a millisecond left has none by that answer.
  redis.call('SET', key, table.concat(new), 'PX', math.max(keep, 1))
end

local function find(owner)
  for place, holder in ipairs(holders) do
    if holder[1] == owner then
      return place, holder
    end
  end
end

-- Prolongs what this owner holds by the ttl that it has, which may be another one since this was asked; or by a new one.
local function again(terms, ttl)
  local _, holder = find(sub(terms, 24, 55))
  if holder then
    ttl = ttl or sub(holder[3], 1, 16)
    holder[2], holder[3] = now + ttl, ttl .. sub(holder[3], 17)
    keep, changed = math.max(keep, tonumber(sub(terms, 11, 23))), true
  end
  return holder
end

-- What it means that an owner does not hold it: 2 if somebody else does, else 0.
local function without(terms)
  -- There is one alone, or any number together.
  local first = holders[1]
  return first and (sub(terms, 72, 72) == 'x' or sub(first[3], 17, 17) == 'x') and 2 or 0
end
