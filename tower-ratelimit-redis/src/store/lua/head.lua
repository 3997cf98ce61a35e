-- What every script of the limiter begins with. A script is this, the algorithms that it knows, and what it does (see redis/scripts.rs).
--
-- The value of a subject, all numbers little endian: the layout (1 byte), the number of counters (1), the revision (4), for how many
-- milliseconds it is kept (8), until when the subject is blocked, in microseconds (8); then of each counter the kind (1), the maximum
-- that it was last charged under (4), and the span in microseconds (8); then of each the state that its algorithm's file tells of.
-- What the numbers mean, and why this is exact, is told in the Rust file of the same name below counter/.
--
-- An algorithm is a length and a function. The length is a number, or a function where states differ:
--   size(value, at)
-- The function charges units if no more than `room` count, and tells how many did, whether the clock went back, so that this must be
-- stored, and what it charged: `front` and the new state. `at` is where the state begins, none where nothing is stored yet. `most` is
-- the maximum of the limit, and `kept` the one that is stored, where it is not replaced:
--   count(front, value, at, span, units, room, kind, ahead, costs, most, kept)
-- Charged with nothing, and without the rest, a state is what it is now.
-- They are few and long, and make few strings, because making functions and strings is what a script spends its time on.
local t = redis.call('TIME')
local now = t[1] * 1000000 + t[2]
local pack, unpack, sub = struct.pack, struct.unpack, string.sub
