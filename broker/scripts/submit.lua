-- Start a run: note it and queue it, once. Again with the same execution: nothing happens.
--
-- KEYS  1 run   2 runs   3 served   4 connection (only where there is a connection_id)
-- ARGV  1 execution   2 a random name of this call   3 endpoint   4 workflow   5 connection_id, '' for none
--       6 runs that may wait   7 ms until its deadline   8 attempts   9 the run's JSON   10 seconds the keys live
-- Answer  'started' (by this call, also when it was said before and the answer was lost), 'known' (by another one),
--         'full', or 'unserved': there are workers, and none serves the workflow.
-- Example EVALSHA … 4 trunkline:run:{ws}:exec_1 trunkline:runs:{ws}:shop trunkline:served:{ws}:shop
--           trunkline:connection:{ws}:shop:ws_1 exec_1 9f shop search ws_1 10000 3600000 3 '{"parameters":{}…}' 172800
--         → "started"

local run, queue, served, connection = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local execution, workflow = ARGV[1], ARGV[4]

local call = redis.call('HGET', run, 'call')
if call then return call == ARGV[2] and 'started' or 'known' end

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
if redis.call('ZCOUNT', served, now, '+inf') > 0 then
  local until_ms = redis.call('ZSCORE', served, workflow)
  if not until_ms or tonumber(until_ms) < now then return 'unserved' end
end
if redis.call('XLEN', queue) >= tonumber(ARGV[6]) then return 'full' end

local entry = redis.call('XADD', queue, '*', 'x', execution)
redis.call('HSET', run, 'call', ARGV[2], 'state', 'queued', 'endpoint', ARGV[3], 'name', workflow, 'connection', ARGV[5],
  'deadline', string.format('%.0f', now + ARGV[7]), 'attempts', ARGV[8], 'attempt', 0, 'spared', 0, 'entry', entry,
  'body', ARGV[9])
if connection then
  -- In their order, also those of one millisecond.
  local newest = redis.call('ZREVRANGE', connection, 0, 0, 'WITHSCORES')[2]
  redis.call('ZADD', connection, math.max(now, tonumber(newest or '0') + 1), execution)
  redis.call('ZREMRANGEBYRANK', connection, 0, -1001)
  redis.call('EXPIRE', connection, ARGV[10])
end
redis.call('EXPIRE', run, ARGV[10])
redis.call('EXPIRE', queue, ARGV[10])
return 'started'
