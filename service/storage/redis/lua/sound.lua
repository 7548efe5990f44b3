-- Begins every script about a log.   KEYS head log keys ...   ARGV id ('' = any) seen crc ('' = nothing) ...
-- Every entry has one key and every key one entry, or had one that was trimmed (`trim.lua`). So counts that differ show that
-- something was removed, evicted, replaced or restored from another time, at a cost that does not grow with the log. `seen` and its
-- checksum are of the last entry that the caller knows: another one there, or none, means that the log was taken back to an earlier
-- state.
local id, last, floor, first, first_crc, trimmed =
  unpack(redis.call('HMGET', KEYS[1], 'id', 'end', 'floor', 'first', 'crc', 'trimmed'))
if not id and redis.call('EXISTS', KEYS[2], KEYS[3]) > 0 then return {'damaged', 'its head is gone', '1'} end
if not id or (id ~= ARGV[1] and ARGV[1] ~= '') then return {'missing', id} end
if not (tonumber(last) and tonumber(floor)) then return {'damaged', 'its head is garbled', '1', id} end
local seen = tonumber(ARGV[2])
if seen and seen > tonumber(last) then return {'rewound', last} end
local entries, names = redis.call('XLEN', KEYS[2]), redis.call('HLEN', KEYS[3])
local kept = last - floor + 1
if entries ~= kept then
  return {'damaged', string.format('%.0f entries are there, and its head counts %.0f', entries, kept), floor, id}
end
if floor ~= '1' then kept = kept + 1 end  -- entry 1 keeps its key when it is trimmed
if trimmed then kept = kept + trimmed end
if names ~= kept then
  return {'damaged', string.format('%.0f keys are there, and its entries have %.0f', names, kept), floor, id}
end
if seen and seen >= tonumber(floor) then
  local entry = redis.call('XRANGE', KEYS[2], ARGV[2] .. '-0', ARGV[2] .. '-0')[1]
  if not entry or entry[2][6] ~= ARGV[3] then return {'rewound', last} end
end
