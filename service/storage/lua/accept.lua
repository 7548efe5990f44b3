-- Accepts an event, once per key. The first write is the one that can be refused (memory, disk, a replica): nothing half-applies.
-- KEYS head log keys   ARGV id key payload crc expected ('' = any)
local id, last = unpack(redis.call('HMGET', KEYS[1], 'id', 'end'))
if id ~= ARGV[1] then return {'missing'} end
local taken = redis.call('HGET', KEYS[3], ARGV[2])
if taken then
  local entry = redis.call('XRANGE', KEYS[2], taken .. '-0', taken .. '-0')[1]
  if entry then return {'duplicate', taken, entry[2][2], entry[2][4], entry[2][6]} end
  local first, crc = unpack(redis.call('HMGET', KEYS[1], 'first', 'crc'))
  if taken == '1' and first then return {'duplicate', taken, ARGV[2], first, crc} end
  return {'damaged', taken}
end
if ARGV[5] ~= '' and ARGV[5] ~= last then return {'conflict', last} end
local offset = string.format('%.0f', last + 1)
redis.call('XADD', KEYS[2], offset .. '-0', 'k', ARGV[2], 'p', ARGV[3], 'c', ARGV[4])
redis.call('HSET', KEYS[3], ARGV[2], offset)
redis.call('HSET', KEYS[1], 'end', offset)
return {'accepted', offset}
