-- Revoke an API key and tell every node, as one step. Once more tells them once more; the first time stays.
--
-- KEYS  1 key    2 revocations
-- ARGV  1 id     2 seconds that a revocation waits for a node that does not see Redis
-- Answer  1.
-- Example EVALSHA … 2 trunkline:key:{keys}:9f86… trunkline:revocations:{keys} key_5d1c… 604800 → (integer) 1

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('HSETNX', KEYS[1], 'revoked', string.format('%.0f', now))
redis.call('XADD', KEYS[2], 'MINID', '=', string.format('%.0f', now - ARGV[2] * 1000), '*', 'k', ARGV[1])
redis.call('EXPIRE', KEYS[2], ARGV[2])
return 1
