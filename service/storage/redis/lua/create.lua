-- A new log with its first entry, or the first entry of the log that has the name. What is left of a log without its head is not
-- overwritten: it was acknowledged.
-- KEYS head log keys snapshots trimmed   ARGV id key payload crc
local id, first, crc = unpack(redis.call('HMGET', KEYS[1], 'id', 'first', 'crc'))
if id then
  if first then return {'taken', id, ARGV[2], first, crc} end
  local entry = redis.call('XRANGE', KEYS[2], '1-0', '1-0')[1]
  if not entry then return {'damaged', 'entry 1 is missing'} end
  return {'taken', id, entry[2][2], entry[2][4], entry[2][6]}
end
if redis.call('EXISTS', KEYS[2], KEYS[3]) > 0 then return {'damaged', 'its head is gone'} end
redis.call('HSET', KEYS[1], 'id', ARGV[1], 'end', 1, 'floor', 1)
redis.call('UNLINK', KEYS[4], KEYS[5])
redis.call('XADD', KEYS[2], '1-0', 'k', ARGV[2], 'p', ARGV[3], 'c', ARGV[4])
redis.call('HSET', KEYS[3], ARGV[2], 1)
return {'created'}
