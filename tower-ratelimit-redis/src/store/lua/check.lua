-- Decides calls of subjects under one policy: each charged to all limits or to none, in the order in which they stand. A refusal
-- writes nothing, but for new times where the clock went back; without them, refusals alone would never let the counts age.
--
-- KEYS     the values of the subjects
-- ARGV[1]  the policy: the number of limits (1 byte), the revision (4), whether its change is for the caller to apply (1), for how
--          many milliseconds a value is kept (8); then the limits, as counters without their state
-- ARGV[2]  0: a call is admitted as a whole or not at all; 1: as many of its units as there is room for; 2: charged whatever the
--          limits; 4 more: charged ahead, in the bucket after that of now
-- ARGV[3]  and so on, for each subject: the cost of each of its calls (4 bytes), a look being one of 0; behind each the name of its
--          permit (8), if the policy has some
-- Answer   the time in microseconds; then for each subject the units granted to each call (4 bytes) and the value as it is stored
--          now; or, where nothing was decided, a number and the value: 0 unknown layout, 1 an algorithm that this script does not
--          know, 2 the change of the revision is to be applied
local policy, ask = ARGV[1], tonumber(ARGV[2])
local ahead = ask >= 4
if ahead then
  ask = ask - 4
end
local limits, revision, revise, keep = unpack('<BI4BI8', policy)
local kinds, maxima, spans, step = {}, {}, {}, 4
for l = 1, limits do
  kinds[l], maxima[l], spans[l] = unpack('<BI4I8', policy, 13 * l + 2)
  if kinds[l] == 7 then
    step = 12
  end
end

local answer = { now }
for k = 1, #KEYS do
  local value, costs = redis.pcall('GET', KEYS[k]) or '', ARGV[k + 2]
  local places, foreign, verdict = {}, nil, nil
  local found, kept_for, blocked = revision, 0, 0
  if type(value) ~= 'string' then
    verdict, value = 0, ''
  elseif value ~= '' then
    local version, count, at = 0, 0, 23
    if #value >= 22 then
      version, count, found, kept_for, blocked = unpack('<BBI4I8I8', value)
    end
    if version ~= 1 or count > 16 then
      verdict = 0
    elseif found < revision and revise == 1 then
      verdict = 2
    end
    for c = 1, verdict and 0 or count do
      -- The head of each is followed by no less than the number of its entries.
      if at + 14 > #value then
        verdict = 0
        break
      end
      local kind, _, span = unpack('<BI4I8', value, at)
      local l = c
      if kind ~= kinds[c] or span ~= spans[c] then
        l = 1
        while l <= limits and (kind ~= kinds[l] or span ~= spans[l]) do
          l = l + 1
        end
      end
      if places[l] or kind < 1 or kind > 7 or span < 1 or span > 31622400000000 then
        verdict = 0
        break
      end
      if not size[kind] then
        verdict = 1
        break
      end
      if l <= limits then
        places[l] = at + 13
      else
        foreign = foreign or {}
        for _, other in ipairs(foreign) do
          if other[1] == kind and other[3] == span then
            verdict = 0
          end
        end
        foreign[#foreign + 1] = { kind, at + 13, span }
      end
      local length = size[kind]
      if type(length) ~= 'number' then
        length = length(value, at + 13)
      end
      at = at + 13 + length
    end
    if not verdict and at ~= #value + 1 then
      verdict = 0
    end
  end

  if verdict then
    answer[2 * k], answer[2 * k + 1] = verdict, value
  else
    local room, back, counts = 4294967295, false, {}
    for l = 1, limits do
      local units, went = 0, false
      if places[l] then
        units, went = used[kinds[l]](value, places[l], spans[l])
      end
      counts[l], back = units, back or went
      if maxima[l] - units < room then
        room = maxima[l] - units
      end
    end
    for _, counter in ipairs(foreign or {}) do
      local _, went = used[counter[1]](value, counter[2], counter[3])
      back = back or went
    end
    if blocked > now then
      room = 0
    end

    local granted, sum, look = '', 0, true
    for c = 1, #costs, step do
      local units = unpack('<I4', costs, c)
      look = look and units == 0
      if ask == 1 then
        units = max(min(units, room), 0)
      elseif ask == 0 and units > room then
        units = 0
      end
      room, sum = room - units, sum + units
      granted = granted .. pack('<I4', units)
    end

    if sum > 0 or back and not look then
      local written, permit, stored, lasts = '', sub(costs, 5, 12), limits, keep
      for l = 1, limits do
        local place, most = places[l], maxima[l]
        -- Whoever has an older revision, or charges nothing, leaves alone what others go by. Nobody goes by a counter of nothing.
        if place and (sum == 0 or found > revision and counts[l] > 0) then
          most = unpack('<I4', value, place - 12)
          written = written .. sub(value, place - 13, place - 1)
        else
          written = written .. sub(policy, 13 * l + 2, 13 * l + 14)
        end
        local units = min(sum, 4294967295 - counts[l])
        written = written .. charged[kinds[l]](value, place, spans[l], units, ahead, permit, most)
      end
      for _, counter in ipairs(foreign or {}) do
        local kind, place, span = counter[1], counter[2], counter[3]
        local units = used[kind](value, place, span)
        if units > 0 and stored < limits + 8 then
          -- Nobody releases a permit of a policy that has none.
          local more = kind == 7 and 0 or min(sum, 4294967295 - units)
          stored, lasts = stored + 1, max(lasts, kept_for)
          written = written .. sub(value, place - 13, place - 1)
          written = written .. charged[kind](value, place, span, more, ahead, nil, unpack('<I4', value, place - 12))
        end
      end
      value = pack('<BBI4I8I8', 1, stored, sum > 0 and max(found, revision) or found, lasts, blocked) .. written
      redis.call('SET', KEYS[k], value, 'PX', max(lasts, ceil((blocked - now) / 1000) + 1))
    end
    answer[2 * k], answer[2 * k + 1] = granted, value
  end
end
return answer
