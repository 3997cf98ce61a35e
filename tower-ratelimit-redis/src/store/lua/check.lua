-- Decides calls of subjects under one policy: each charged to all limits or to none, in the order in which they stand. A refusal
-- writes nothing, but for new times where the clock went back; without them, refusals alone would never let the counts age.
--
-- KEYS     the values of the subjects
-- ARGV[1]  the policy: all that stands before the states in a value that this policy alone was charged under
-- ARGV[2]  for how many milliseconds such a value is kept
-- ARGV[3]  and so on, for each subject: the cost of each of its calls (4 bytes), a look being one of 0; behind each the name of its
--          permit (8), if it has one; such a call is alone
-- Behind   how the calls are decided, if not as a whole or not at all: 1, as many of their units as there is room for; 2, charged
--          whatever the limits; 4 more: charged ahead, in the bucket after that of now; 8 more: a change of the revision is for the
--          caller to apply; 16 more: each call has a permit
-- Answer   of a single call that is admitted as a whole the value as it is stored now, if that ends with the time (`timed`).
--          Else the time in microseconds; then for each subject the units granted and the value as it is stored now. The units are a number
--          for a single call, else 4 bytes for each. A number below 0 tells why nothing was decided: -1 unknown layout, -2 an
--          algorithm that this script does not know, -3 the change of the revision is to be applied
local policy, keep, ask = ARGV[1], ARGV[2], ARGV[#KEYS + 3]
local step, revise, ahead = 4, false, false
if ask then
  ask = tonumber(ask)
  step, revise, ahead, ask = ask >= 16 and 12 or 4, ask % 16 >= 8, ask % 8 >= 4, ask % 4
end
local limits, revision, first, greatest, period = (#policy - 22) / 13, unpack('<I4', policy, 3), unpack('<BI4I8', policy, 23)

local answer = { now, 0, '' }
for k = 1, #KEYS do
  local value, costs = redis.pcall('GET', KEYS[k]) or '', ARGV[k + 2]
  local places, heads, uses, foreign, verdict
  local found, kept_for, blocked, moved = 0, 0, 0, false

  -- Most often a value is just as this policy writes it.
  local own = value == ''
  if #value > #policy and sub(value, 1, #policy) == policy then
    local at = #policy + 1
    if length then
      at = at + limits * length
    else
      for l = 1, limits do
        at = at + (#value > at and size(value, at, (unpack('<B', policy, 13 * l + 10))) or 0)
      end
    end
    own = at == #value + 1
  end

  -- Else: the state of each limit and what stands before it; and of each counter that the policy does not have.
  if not own then
    places, heads, uses, foreign = {}, {}, {}, {}
    local version, count = 0, 0
    if type(value) ~= 'string' then
      value = ''
    elseif #value >= 22 then
      version, count, found, kept_for, blocked = unpack('<BBI4I8I8', value)
      -- No block is longer than its value is kept: else the clock has gone back since.
      if blocked > now + kept_for * 1000 then
        blocked, moved = now + kept_for * 1000, true
      elseif blocked <= now then
        blocked = 0
      end
    end
    local at = 23 + 13 * count
    if version ~= 1 or count > 16 or at > #value + 1 then
      verdict = -1
    elseif found < revision and revise then
      verdict = -3
    end
    for c = 1, verdict and 0 or count do
      local kind, _, span = unpack('<BI4I8', value, 13 * c + 10)
      local mine
      for l = 1, limits do
        local of, _, over = unpack('<BI4I8', policy, 13 * l + 10)
        if kind == of and span == over then
          mine = l
        end
      end
      for _, other in ipairs(foreign) do
        if other.kind == kind and other.span == span then
          verdict = -1
        end
      end
      -- A state is no shorter than the number of its entries.
      if verdict or places[mine] or kind < 1 or kind > 7 or span < 1 or span > 31622400000000 or at >= #value then
        verdict = -1
        break
      end
      if sole and kind ~= first then
        verdict = -2
        break
      end
      local head = sub(value, 13 * c + 10, 13 * c + 22)
      if mine then
        places[mine], heads[mine] = at, head
      else
        foreign[#foreign + 1] = { kind = kind, span = span, at = at, head = head }
      end
      at = at + (length or size(value, at, kind))
    end
    if not verdict and at ~= #value + 1 then
      verdict = -1
    end
  end

  if verdict then
    answer[2 * k], answer[2 * k + 1] = verdict, value
  else
    local wanted = unpack('<I4', costs)
    for c = 1 + step, #costs, step do
      wanted = wanted + unpack('<I4', costs, c)
    end
    local granted, sum, anyway = #costs > step and costs or wanted, wanted, ask == 2
    local room, back, written, again
    -- With all that is wanted; where that does not fit, once more with what there is room for.
    repeat
      local at = value ~= '' and #policy + 1 or nil
      room, back, written, again = blocked > 0 and 0 or 4294967295, moved, own and policy or '', false
      for l = 1, limits do
        local kind, most, span = first, greatest, period
        if l > 1 then
          kind, most, span = unpack('<BI4I8', policy, 13 * l + 10)
        end
        local kept
        if places then
          at = places[l]
          -- Whoever has an older revision, or charges nothing, leaves alone what others go by.
          if at and (sum == 0 or found > revision) then
            kept = unpack('<I4', heads[l], 2)
          end
        end
        local free = most - sum
        if anyway then
          free = 4294967295
        elseif sum > room or wanted == 0 then
          free = -1
        end
        local used, went, charged = count(written, value, at, span, sum, free, kind, ahead, costs, most, kept)
        back, written = back or went, charged or written
        if uses then
          uses[l] = used
        end
        if most - used < room then
          room = most - used
        end
        if at and l < limits then
          at = at + (length or size(value, at, kind))
        end
      end

      for _, other in ipairs(foreign or {}) do
        local _, went = count('', value, other.at, other.span, 0, -1, other.kind)
        back = back or went
      end

      if sum > room and not anyway then
        granted, sum = '', 0
        for c = 1, #costs, step do
          local units = unpack('<I4', costs, c)
          if ask == 1 then
            units = math.max(math.min(units, room), 0)
          elseif units > room then
            units = 0
          end
          room, sum = room - units, sum + units
          granted = #costs > step and granted .. pack('<I4', units) or units
        end
        anyway, again = true, wanted > 0 and (sum > 0 or back)
      end
    until not again

    if wanted > 0 and (sum > 0 or back) then
      local lasts = keep
      if not own then
        local before, stored = '', limits
        lasts = tonumber(keep)
        for l = 1, limits do
          -- Nobody goes by a counter of nothing.
          local keeps = heads[l] and (sum == 0 or found > revision and uses[l] > 0)
          if keeps then
            lasts = math.max(lasts, kept_for)
          end
          before = before .. (keeps and heads[l] or sub(policy, 13 * l + 10, 13 * l + 22))
        end
        for _, other in ipairs(foreign) do
          -- Nobody releases a permit of a policy that has none.
          local more = other.kind == 7 and 0 or sum
          local most = unpack('<I4', other.head, 2)
          local used, _, charged =
            count(written, value, other.at, other.span, more, 4294967295, other.kind, ahead, costs, most)
          if used > 0 and stored < limits + 8 then
            before, written = before .. other.head, charged
            stored, lasts = stored + 1, math.max(lasts, kept_for)
          end
        end
        if sum > 0 and revision > found then
          found = revision
        end
        if blocked > 0 then
          lasts = math.max(lasts, kept_for)
        end
        written = pack('<BBI4I8I8', 1, stored, found, lasts, blocked) .. before .. written
        lasts = math.max(lasts, math.ceil((blocked - now) / 1000) + 1)
      end
      value = written
      redis.call('SET', KEYS[k], value, 'PX', lasts)
    end
    if timed and sum > 0 and granted == wanted and #KEYS == 1 then
      return value
    end
    answer[2 * k], answer[2 * k + 1] = granted, value
  end
end
return answer
