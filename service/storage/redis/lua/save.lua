-- Keeps a snapshot and forgets all but the newest ones, and those of what the log does not hold. Answers the oldest of as many as
-- shall be kept, 0 where there are fewer.
-- KEYS head log keys snapshots   ARGV id seen crc offset blob kept
if tonumber(ARGV[4]) > tonumber(last) then return {'rewound', last} end
if redis.call('TYPE', KEYS[4]).ok ~= 'hash' then redis.call('UNLINK', KEYS[4]) end
redis.call('HSET', KEYS[4], ARGV[4], ARGV[5])
local offsets = {}
for _, offset in ipairs(redis.call('HKEYS', KEYS[4])) do
  if (tonumber(offset) or math.huge) > tonumber(last) then
    redis.call('HDEL', KEYS[4], offset)
  else
    table.insert(offsets, offset)
  end
end
table.sort(offsets, function(a, b) return tonumber(a) > tonumber(b) end)
for i = tonumber(ARGV[6]) + 1, #offsets do redis.call('HDEL', KEYS[4], offsets[i]) end
return {'saved', offsets[tonumber(ARGV[6])] or '0'}
