-- The entry under a key.
-- KEYS head log keys   ARGV id seen crc key
local offset = redis.call('HGET', KEYS[3], ARGV[4])
if not offset then return {'nothing'} end
if string.sub(offset, 1, 1) == '-' then return {'trimmed', string.sub(offset, 2)} end
local entry = redis.call('XRANGE', KEYS[2], offset .. '-0', offset .. '-0')[1]
if entry then return {'found', offset, entry[2][2], entry[2][4], entry[2][6]} end
if offset == '1' and first then return {'found', offset, ARGV[4], first, first_crc} end
return {'lost', offset}
