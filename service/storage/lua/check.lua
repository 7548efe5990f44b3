-- What stands at an offset: the log's end, its first kept offset, and the checksum of the entry.
-- KEYS head log   ARGV id offset
local id, last, floor = unpack(redis.call('HMGET', KEYS[1], 'id', 'end', 'floor'))
if id ~= ARGV[1] then return {'missing'} end
local entry = redis.call('XRANGE', KEYS[2], ARGV[2] .. '-0', ARGV[2] .. '-0')[1]
return {'found', last, floor, entry and entry[2][6] or ''}
