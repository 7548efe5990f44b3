-- KEYS head log keys snapshots   ARGV id
if redis.call('HGET', KEYS[1], 'id') ~= ARGV[1] then return {'missing'} end
redis.call('UNLINK', KEYS[1], KEYS[2], KEYS[3], KEYS[4])
return {'deleted'}
