-- What a log is now: its end, its first kept offset, and entry 1 if it was trimmed.
-- KEYS head log keys   ARGV id seen crc
return {'sound', id, last, floor, first, first_crc}
