-- For scripts that know all algorithms: where the state of each counter of a value begins, with its kind and span; nothing if the value
-- has no layout of ours.
local function walk(value)
  local places, at = {}, 23
  if type(value) ~= 'string' or #value < 22 or string.byte(value) ~= 1 then
    return nil
  end
  for c = 1, string.byte(value, 2) do
    if at + 14 > #value then
      return nil
    end
    local kind, _, span = unpack('<BI4I8', value, at)
    local length = size[kind]
    if not length or span < 1 or span > 31622400000000 then
      return nil
    end
    if type(length) ~= 'number' then
      length = length(value, at + 13)
    end
    places[c] = { kind, at + 13, span }
    at = at + 13 + length
  end
  return at == #value + 1 and places or nil
end
