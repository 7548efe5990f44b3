-- The register of names follows what the log's own keys say, unless another process has written the name meanwhile.
-- KEYS names   ARGV name from ('' = absent too) to ('' = forget)
local now = redis.call('HGET', KEYS[1], ARGV[1])
if now and now ~= ARGV[2] then return 0 end
if ARGV[3] == '' then return redis.call('HDEL', KEYS[1], ARGV[1]) end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[3])
return 1
