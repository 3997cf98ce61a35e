-- What every script of the limiter begins with. A script is this, the algorithms that it knows, and what it does (see redis.rs).
--
-- The value of a subject, all numbers little endian: the layout (1 byte), the number of counters (1), the revision (4), for how many
-- milliseconds it is kept (8), until when the subject is blocked, in microseconds (8); then the counters. Each is its kind (1), the
-- maximum that it was last charged under (4), its span in microseconds (8), and the state that its algorithm's file tells of.
-- What the numbers mean, and why this is exact, is told in the Rust file of the same name below counter/.
--
-- By kind: how long a state is (or a function that tells), how many units count now (and whether the clock went back, so that this
-- must be stored), and the state once so many more were charged, ahead or not, to a permit of some name, under some
-- maximum. `at` is where the state begins, none where nothing is stored yet.
local t = redis.call('TIME')
local now = t[1] * 1000000 + t[2]
local pack, unpack, sub, rep = struct.pack, struct.unpack, string.sub, string.rep
local floor, ceil, min, max = math.floor, math.ceil, math.min, math.max
local size, used, charged = {}, {}, {}
