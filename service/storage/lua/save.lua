-- Keeps a snapshot and forgets all but the newest ones. A snapshot of what the log does not hold is refused.
-- KEYS head snapshots   ARGV id offset blob kept
local id, last = unpack(redis.call('HMGET', KEYS[1], 'id', 'end'))
if id ~= ARGV[1] then return {'missing'} end
if tonumber(ARGV[2]) > tonumber(last) then return {'ahead', last} end
redis.call('HSET', KEYS[2], ARGV[2], ARGV[3])
local offsets = redis.call('HKEYS', KEYS[2])
table.sort(offsets, function(a, b) return tonumber(a) > tonumber(b) end)
for i = tonumber(ARGV[4]) + 1, #offsets do redis.call('HDEL', KEYS[2], offsets[i]) end
return {'saved'}
