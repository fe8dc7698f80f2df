-- Count the commands of a workspace that wait for their agents; those whose deadline has passed do so no longer.
--
-- KEYS  1 waiting
-- Answer  their number
-- Example EVALSHA … 1 trunkline:waiting:{ws} → 3

local time = redis.call('TIME')
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', string.format('%.0f', time[1] * 1000 + math.floor(time[2] / 1000)))
return redis.call('ZCARD', KEYS[1])
