-- Start a run: note it and queue it, once. Again with the same execution: nothing happens.
--
-- KEYS  1 run   2 runs   3 served   4 queued   5 workspace   6 connection (only where there is a connection_id)
-- ARGV  1 execution   2 a random name of this call   3 endpoint   4 workflow   5 connection_id, '' for none
--       6 runs that may wait   7 ms until its deadline   8 attempts   9 the run's JSON   10 a digest of what is asked
--       for   11 seconds the keys live
-- Answer  'started' (by this call, also when it was said before and the answer was lost) or 'known' (by another one),
--         then the workspace's position before the run, and its deadline (ms), both as when it was started;
--         or alone 'full'; 'unserved': there are workers, and none has served the workflow lately; or 'other': the
--         execution is known, and something else was asked for under it.
-- Example EVALSHA … 6 trunkline:run:{ws}:exec_1 trunkline:runs:{ws}:shop trunkline:served:{ws}:shop
--           trunkline:queued:{ws} trunkline:workspace:{ws} trunkline:connection:{ws}:shop:ws_1
--           exec_1 9f shop search ws_1 10000 3600000 3 '{"parameters":{}…}' 5d2f… 172800
--         → "started" "1790000000000-0" "1790003600000"

local run, queue, served, queued, connection = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[6]
local execution, workflow = ARGV[1], ARGV[4]

local known = redis.call('HMGET', run, 'call', 'since', 'deadline', 'digest')
if known[1] then
  if known[4] ~= ARGV[10] then return {'other'} end
  return {known[1] == ARGV[2] and 'started' or 'known', known[2], known[3]}
end

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local function text(number) return string.format('%.0f', number) end

-- Also what was served until a moment ago: workers that are just restarted refuse nobody.
local is_served = redis.call('ZSCORE', served, workflow)
if not is_served and redis.call('ZCOUNT', served, now, '+inf') > 0 then return {'unserved'} end
if redis.call('XLEN', queue) >= tonumber(ARGV[6]) then return {'full'} end

local since, deadline = redis.call('HGET', KEYS[5], 'position') or '0-0', text(now + ARGV[7])
local entry = redis.call('XADD', queue, '*', 'x', execution)
redis.call('HSET', run, 'call', ARGV[2], 'state', 'queued', 'endpoint', ARGV[3], 'name', workflow, 'connection', ARGV[5],
  'since', since, 'deadline', deadline, 'attempts', ARGV[8], 'attempt', 0, 'spared', 0, 'entry', entry, 'body', ARGV[9],
  'digest', ARGV[10], 'served', is_served and 1 or '')
if connection then
  -- In their order, also those of one millisecond.
  local newest = redis.call('ZREVRANGE', connection, 0, 0, 'WITHSCORES')[2]
  redis.call('ZADD', connection, math.max(now, tonumber(newest or '0') + 1), execution)
  redis.call('ZREMRANGEBYRANK', connection, 0, -1001)
  redis.call('EXPIRE', connection, ARGV[11])
end
-- What nobody has taken leaves it when its own keys expire.
redis.call('ZREMRANGEBYSCORE', queued, '-inf', text(now))
redis.call('ZADD', queued, text(now + ARGV[11] * 1000), execution)
redis.call('EXPIRE', queued, ARGV[11])
redis.call('EXPIRE', run, ARGV[11])
redis.call('EXPIRE', queue, ARGV[11])
return {'started', since, deadline}
