-- Keep the record of a new API key.
--
-- KEYS  1 key    2 keys
-- ARGV  1 id     2 hash of the key, as in the name of KEYS[1]    3 endpoint    4 workspace
-- Answer  1.
-- Example EVALSHA … 2 trunkline:key:{keys}:9f86… trunkline:keys:{keys} key_5d1c… 9f86… coffee-shop-e66b8d23 ws-456
--         → (integer) 1

local time = redis.call('TIME')
local now = string.format('%.0f', time[1] * 1000 + math.floor(time[2] / 1000))
redis.call('HSET', KEYS[1], 'id', ARGV[1], 'endpoint', ARGV[3], 'workspace', ARGV[4], 'created', now)
redis.call('HSET', KEYS[2], ARGV[1], ARGV[2])
return 1
