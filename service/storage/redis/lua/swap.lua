-- Replaces a record, if it is what the caller expects.
-- KEYS records head (of a record of a log)   ARGV id ('' = of the store) key expected ('' = none) value ('' = remove it)
if ARGV[1] ~= '' then
  local id = redis.call('HGET', KEYS[2], 'id')
  if id ~= ARGV[1] then return {'missing', id} end
end
if (redis.call('HGET', KEYS[1], ARGV[2]) or '') ~= ARGV[3] then return {'other'} end
if ARGV[4] == '' then
  redis.call('HDEL', KEYS[1], ARGV[2])
else
  redis.call('HSET', KEYS[1], ARGV[2], ARGV[4])
end
return {'swapped'}
