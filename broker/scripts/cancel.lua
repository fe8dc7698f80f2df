-- Ask for the end of a run. One that nobody works on is held by the caller then, who says the end; else its worker is told.
--
-- KEYS  1 run   2 runs   3 held   4 cancels   5 queued
-- ARGV  1 execution   2 holder: a random name of the caller   3 length of its lease (ms)
-- Answer  'held', 'told', 'ended' (before), or 'unknown'. Again: the same, for the same caller.
-- Example EVALSHA … 5 trunkline:run:{ws}:exec_1 trunkline:runs:{ws}:shop trunkline:held:{ws}:shop
--           trunkline:cancels:{ws}:shop trunkline:queued:{ws} exec_1 9f 10000 → "told"

local run, queue, held, cancels, queued = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local known = redis.call('HMGET', run, 'state', 'holder', 'entry')
local state = known[1]
if not state then return 'unknown' end
if state ~= 'queued' and state ~= 'running' then return 'ended' end

-- Whoever holds the run next sees it, should the caller or the worker die now.
redis.call('HSET', run, 'cancel', 1)
if state == 'running' and known[2] == ARGV[2] then return 'held' end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local due = tonumber(redis.call('ZSCORE', held, ARGV[1]) or '0')
if state == 'running' and due > now then
  redis.call('XADD', cancels, 'MAXLEN', '~', 1000, '*', 'x', ARGV[1])
  redis.call('EXPIRE', cancels, 60)
  return 'told'
end
if known[3] then
  redis.pcall('XACK', queue, 'workers', known[3])  -- fails without a group
  redis.call('XDEL', queue, known[3])
end
redis.call('ZREM', queued, ARGV[1])
redis.call('HSET', run, 'state', 'running', 'holder', ARGV[2])
redis.call('ZADD', held, string.format('%.0f', now + ARGV[3]), ARGV[1])
return 'held'
