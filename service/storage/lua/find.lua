-- The entry under a key.
-- KEYS head log keys   ARGV id key
local id, first, crc = unpack(redis.call('HMGET', KEYS[1], 'id', 'first', 'crc'))
if id ~= ARGV[1] then return {'missing'} end
local offset = redis.call('HGET', KEYS[3], ARGV[2])
if not offset then return {'nothing'} end
local entry = redis.call('XRANGE', KEYS[2], offset .. '-0', offset .. '-0')[1]
if entry then return {'found', offset, entry[2][2], entry[2][4], entry[2][6]} end
if offset == '1' and first then return {'found', offset, ARGV[2], first, crc} end
return {'damaged', offset}
