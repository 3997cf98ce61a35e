-- For scripts that know all algorithms: where the state of each counter of a value begins, with its kind and span; nothing if the value
-- has no layout of ours.
local function walk(value)
  if type(value) ~= 'string' or #value < 22 or string.byte(value) ~= 1 then
    return nil
  end
  local places, count = {}, string.byte(value, 2)
  local at = 23 + 13 * count
  for c = 1, count do
    -- A state is no shorter than the number of its entries.
    if at >= #value then
      return nil
    end
    local kind, _, span = unpack('<BI4I8', value, 13 * c + 10)
    if kind < 1 or kind > 7 or span < 1 or span > 31622400000000 then
      return nil
    end
    places[c] = { kind, at, span }
    at = at + size(value, at, kind)
  end
  return at == #value + 1 and places or nil
end
