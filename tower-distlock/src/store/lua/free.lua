-- What is stored if a lock is granted by the clock that nobody has and nobody waits for: one function, and no numbers, which take longer
-- than all of it.
local function free(value, terms)
  if not value then
    return '1' .. clock .. '2' .. terms .. clock .. clock .. '00000000000000000000000000000000'
  elseif #value == 73 and byte(value) == 49 and byte(value, 18) % 2 == 0 and sub(value, 2, 17) < clock
    and sub(value, 19, 41) == sub(terms, 1, 23) then
    return '1' .. clock .. '0' .. terms .. clock .. clock .. sub(value, 42)
  end
end
