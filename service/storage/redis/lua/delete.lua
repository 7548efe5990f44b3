-- Removes a log, also what is left of a damaged one, and leaves a note, which tells a deletion from a loss.
-- KEYS head log keys snapshots deleted records trimmed   ARGV id ttl
local id = redis.call('TYPE', KEYS[1]).ok == 'hash' and redis.call('HGET', KEYS[1], 'id')
if id and id ~= ARGV[1] then return {'missing'} end
redis.call('UNLINK', KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[6], KEYS[7])
redis.pcall('SET', KEYS[5], ARGV[1], 'EX', ARGV[2])  -- full memory must not keep a log from being deleted
return {'deleted'}
