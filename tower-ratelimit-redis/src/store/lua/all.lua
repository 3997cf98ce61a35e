-- The algorithms by their kinds, for scripts that know all of them.
local sizes = { strict_size, sliding_size, gcra_size, log_size, fixed_size, fixed_size, leases_size }
local counts = { strict, sliding, gcra, log, fixed, fixed, leases }

local function size(value, at, kind)
  local length = sizes[kind]
  return type(length) == 'number' and length or length(value, at)
end

local function count(front, value, at, span, units, room, kind, ahead, costs, most, kept)
  return counts[kind](front, value, at, span, units, room, kind, ahead, costs, most, kept)
end

local sole, timed, length = false, false, nil
