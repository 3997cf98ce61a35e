-- The rest of letting go.
if not read(value) then
  return -1
end
local owner, outcome = sub(terms, 24, 55), without(terms)
if lined then
  leave(owner)
end
local place = find(owner)
if place then
  table.remove(holders, place)
  keep, changed, last, outcome = math.max(keep, tonumber(ARGV[2])), true, owner, 1
elseif last == owner then
  -- The same as before, of which the answer was lost.
  outcome = 1
end
if ARGV[3] == 'a' then
  redis.call('SET', KEYS[4], '1', 'PX', ARGV[4])
  if place and fresh and not holders[1] then
    -- Nobody has seen that fence.
    fence = 0
  end
end
if not ARGV[5] then
  hand_over(owner)
  store(KEYS[1])
  send()
  return outcome
end

local next_terms = ARGV[6]
local heir, refused = sub(next_terms, 24, 55), redis.call('GET', KEYS[5])
if not refused and not again(next_terms) then
  if not agrees(next_terms) then
    store(KEYS[1])
    return { -2, tonumber(seats) }
  end
  local first = true
  for _, other in ipairs(ARGV[5] == 'y' and lined and redis.call('ZRANGE', KEYS[2], 0, -1) or {}) do
    if other ~= heir and waits(other) then
      first = false
      break
    end
  end
  if first and has_room(next_terms) then
    if lined then
      leave(heir)
    end
    grant(next_terms, sub(next_terms, 56, 71), ARGV[8])
  else
    line_up(next_terms, 8)
  end
end
hand_over(heir)
store(KEYS[1])
send()
local answered = refused and { 0 } or answer(next_terms)
table.insert(answered, 1, outcome)
return answered
