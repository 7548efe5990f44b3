-- Accepts an event, once per key. The first write is the one that can be refused (memory, disk, a replica): nothing half-applies.
-- KEYS head log keys   ARGV id seen crc key payload checksum expected ('' = any)
local taken = redis.call('HGET', KEYS[3], ARGV[4])
if taken and string.sub(taken, 1, 1) == '-' then return {'trimmed', string.sub(taken, 2)} end
if taken then
  local entry = redis.call('XRANGE', KEYS[2], taken .. '-0', taken .. '-0')[1]
  if entry then return {'duplicate', taken, entry[2][2], entry[2][4], entry[2][6]} end
  if taken == '1' and first then return {'duplicate', taken, ARGV[4], first, first_crc} end
  return {'lost', taken}
end
if ARGV[7] ~= '' and ARGV[7] ~= last then return {'conflict', last} end
local offset = string.format('%.0f', last + 1)
redis.call('XADD', KEYS[2], 'NOMKSTREAM', offset .. '-0', 'k', ARGV[4], 'p', ARGV[5], 'c', ARGV[6])
redis.call('HSET', KEYS[3], ARGV[4], offset)
redis.call('HSET', KEYS[1], 'end', offset)
return {'accepted', offset}
