-- Forgets entries behind the oldest kept snapshot, with their keys; never entry 1, nor one of the last `keep`. A few per call.
-- KEYS head log keys snapshots   ARGV id seen crc keep snapshots batch
local offsets = redis.call('HKEYS', KEYS[4])
if #offsets < tonumber(ARGV[5]) then return {'trimmed', floor, 0} end
local bound = last - ARGV[4] + 1
for _, offset in ipairs(offsets) do bound = math.min(bound, tonumber(offset)) end
floor = tonumber(floor)
if bound <= floor then return {'trimmed', floor, 0} end
if not first then
  local entry = redis.call('XRANGE', KEYS[2], '1-0', '1-0')[1]
  if not entry then return {'lost', '1'} end
  redis.call('HSET', KEYS[1], 'first', entry[2][4], 'crc', entry[2][6])
end
local next = math.min(bound, floor + ARGV[6])
for _, entry in ipairs(redis.call('XRANGE', KEYS[2], '-', string.format('(%.0f-0', next))) do
  if entry[1] ~= '1-0' then redis.call('HDEL', KEYS[3], entry[2][2]) end
end
redis.call('XTRIM', KEYS[2], 'MINID', '=', string.format('%.0f-0', next))
redis.call('HSET', KEYS[1], 'floor', string.format('%.0f', next))
return {'trimmed', next, bound - next}
