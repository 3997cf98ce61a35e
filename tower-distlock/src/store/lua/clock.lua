-- The time in 16 digits.
local clock = #t[2] == 6 and t[1] .. t[2] or t[1] .. sub('00000', #t[2]) .. t[2]
