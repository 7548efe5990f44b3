-- Drops entries before an offset and behind the oldest kept snapshot, never entry 1. Their keys stay taken, with minus the offset;
-- those that may be forgotten one day stand in a list, too, in their order. A few per call.
-- KEYS head log keys snapshots trimmed   ARGV id seen crc before snapshots batch forget lasting...
local batch, few = tonumber(ARGV[6]), 0
trimmed = tonumber(trimmed or 0)
for _, one in ipairs(redis.call('LRANGE', KEYS[5], 0, batch - 1)) do
  local offset, key = string.match(one, '^(%d+) (.*)$')
  if tonumber(offset) >= tonumber(ARGV[7]) then break end
  if redis.call('HGET', KEYS[3], key) == '-' .. offset then trimmed = trimmed - redis.call('HDEL', KEYS[3], key) end
  few = few + 1
end
if few > 0 then
  redis.call('LTRIM', KEYS[5], few, -1)
  redis.call('HSET', KEYS[1], 'trimmed', string.format('%.0f', trimmed))
end
local more = few == batch and 1 or 0
local bound, offsets = tonumber(ARGV[4]), redis.call('HKEYS', KEYS[4])
if #offsets < tonumber(ARGV[5]) then return {'floor', floor, more} end
for _, offset in ipairs(offsets) do bound = math.min(bound, tonumber(offset)) end
if bound <= tonumber(floor) then return {'floor', floor, more} end
local lasting = {}
for i = 8, #ARGV do lasting[ARGV[i]] = true end
local next = math.min(bound, floor + batch)
for _, entry in ipairs(redis.call('XRANGE', KEYS[2], '-', string.format('(%.0f-0', next))) do
  local offset, key = string.sub(entry[1], 1, -3), entry[2][2]
  if offset == '1' then
    redis.call('HSET', KEYS[1], 'first', entry[2][4], 'crc', entry[2][6])
  else
    redis.call('HSET', KEYS[3], key, '-' .. offset)
    if not lasting[offset] then redis.call('RPUSH', KEYS[5], offset .. ' ' .. key) end
    trimmed = trimmed + 1
  end
end
redis.call('XTRIM', KEYS[2], 'MINID', '=', string.format('%.0f-0', next))
redis.call('HSET', KEYS[1], 'floor', string.format('%.0f', next), 'trimmed', string.format('%.0f', trimmed))
return {'floor', next, next < bound and 1 or more}
