-- What every script of the locks begins with; a script is this, and the files that redis/scripts.rs puts behind it. What is done is
-- told in record.rs, which does the same to the same.
--
-- The value of a lock, all numbers in digits: the layout (1 byte), the last fence (16), flags (1: 1 if somebody may be in line, 2 if
-- nothing was remembered before the last grant), the seats of those who hold it (10, 0 for any number), for how many milliseconds it
-- is kept from its last change on (13, or longer than it really is); of each holder the owner (32), the ttl (16), `x` alone or `s`
-- together (1), the length of the instance (2), the instance, when the lease would have begun to end with the ttl (16, microseconds),
-- the fence (16); and the owner who was the last to let go (32).
-- Terms are a part of that, from the seats to the first instance, so that they are stored and compared as they come.
-- The line is a sorted set of owners by the time at which they came. What is known of each is a field of a hash: until when it is
-- believed to wait (16), `c` for fences by the clock or `n` for counted ones (1), `p` or `s` for the command to publish with (1), its
-- terms, the channel.
local t = redis.call('TIME')
local sub, byte = string.sub, string.byte
