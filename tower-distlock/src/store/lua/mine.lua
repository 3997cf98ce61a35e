-- What is stored if a lock is let go of that nobody else has and nobody waits for. The owner stays as the last to let go: the same is
-- known again if the answer is lost.
local function mine(value, terms)
  if value and #value == #terms + 82 and sub(value, 19, -65) == terms and byte(value) == 49 and byte(value, 18) % 2 == 0
    and clock - sub(value, -64, -49) < sub(terms, 56, 71) + 0 then
    return sub(value, 1, 73)
  end
end
