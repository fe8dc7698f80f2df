-- Give a held run back: at once, or for a retry later.
--
-- KEYS  1 run   2 runs   3 held   4 queued
-- ARGV  1 execution   2 holder   3 what becomes of the attempt: 'counted', 'spared' (it does not count) or 'unbegun' (it
--       was none)   4 ms until somebody may take it; at once if it is to be cancelled   5 seconds the keys live
-- Answer  1, or 0 when it is held by another, or by nobody
-- Example EVALSHA … 4 trunkline:run:{ws}:exec_1 trunkline:runs:{ws}:shop trunkline:held:{ws}:shop trunkline:queued:{ws}
--           exec_1 9f spared 0 172800 → 1

local run, queue, held, queued = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
if redis.call('HGET', run, 'holder') ~= ARGV[2] then return 0 end

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local ms = redis.call('HGET', run, 'cancel') and 0 or tonumber(ARGV[4])
redis.call('HSET', run, 'state', 'queued')
redis.call('HDEL', run, 'holder')
if ARGV[3] == 'spared' then redis.call('HINCRBY', run, 'spared', 1) end
if ARGV[3] == 'unbegun' then redis.call('HINCRBY', run, 'attempt', -1) end
redis.call('ZADD', queued, string.format('%.0f', now + ARGV[5] * 1000), ARGV[1])
redis.call('EXPIRE', queued, ARGV[5])
-- What is due goes before the queue, but only with a beat; an idle worker waits for the queue.
redis.call('ZADD', held, string.format('%.0f', now + ms), ARGV[1])
if ms == 0 then redis.call('HSET', run, 'entry', redis.call('XADD', queue, '*', 'x', ARGV[1])) end
return 1
