-- The rest of asking for a lock.
if not read(value or redis.pcall('GET', KEYS[1])) then
  return { -1 }
elseif got[2] then
  return { 0 }
end
if not again(terms) then
  if not agrees(terms) then
    store(KEYS[1])
    return { -2, tonumber(seats) }
  elseif has_room(terms) and not first_in_line() then
    grant(terms, sub(terms, 56, 71), ARGV[3])
  else
    if ARGV[4] then
      line_up(terms, 3)
    end
    hand_over(sub(terms, 24, 55))
  end
end
store(KEYS[1])
send()
return answer(terms)
