-- Take a command away for good: it is settled, or its deadline has passed. Again: nothing happens.
--
-- KEYS  1 command stream   2 waiting
-- ARGV  1 the entry's id   2 the command's key
-- Answer  1 when the entry was there, else 0
-- Example EVALSHA … 2 trunkline:commands:{ws}:a1 trunkline:waiting:{ws} 1790000000000-0 9f → 1

-- Acknowledged before it is deleted: what is deleted alone would stay on its consumer's list.
redis.call('XACK', KEYS[1], 'agent', ARGV[1])
redis.call('ZREM', KEYS[2], ARGV[2])
return redis.call('XDEL', KEYS[1], ARGV[1])
