-- Hold a run: one that was queued, one whose retry is due, or one whose holder has let its lease end, unless workers
-- are only just coming back after a silence (beat_runs.lua).
--
-- KEYS  1 run   2 runs   3 held   4 served   5 queued   6 returned
-- ARGV  1 execution   2 the entry that brought it, '' for none   3 holder: a random name of this attempt
--       4 length of the lease (ms)
-- Answer  nothing when it is not to be had; else workflow, connection_id, attempt, how many attempts count, how many
--         there may be, ms until the deadline, '1' when it is to be cancelled, who serves the workflow ('live': a live
--         worker; 'before': one did when the run was accepted, or has begun it; ''), the run's JSON. Again by the same
--         holder: the same, and its lease begins anew.
-- Example EVALSHA … 6 trunkline:run:{ws}:exec_1 trunkline:runs:{ws}:shop trunkline:held:{ws}:shop
--           trunkline:served:{ws}:shop trunkline:queued:{ws} trunkline:returned:{ws}:shop
--           exec_1 1790000000000-0 9f 10000
--         → "search" "ws_1" "1" "1" "3" "3599000" "" "live" '{"parameters":{},"metadata":{}}'

local run, queue, held, served, queued = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local execution, entry, holder = ARGV[1], ARGV[2], ARGV[3]

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local function text(number) return string.format('%.0f', number) end

if entry ~= '' then
  redis.pcall('XACK', queue, 'workers', entry)  -- fails without a group
  redis.call('XDEL', queue, entry)
end
local known = redis.call('HMGET', run, 'state', 'holder')
local state = known[1]
if state ~= 'queued' and state ~= 'running' then
  redis.call('ZREM', held, execution)
  return {}
end
if not (state == 'running' and known[2] == holder) then
  local due = redis.call('ZSCORE', held, execution)
  if due and tonumber(due) > now then return {} end
  if state == 'running' and (not due or redis.call('EXISTS', KEYS[6]) == 1) then return {} end
  redis.call('HSET', run, 'state', 'running', 'holder', holder)
  redis.call('HINCRBY', run, 'attempt', 1)
  redis.call('ZREM', queued, execution)
end
redis.call('ZADD', held, text(now + ARGV[4]), execution)

local fields = redis.call('HMGET', run, 'name', 'connection', 'attempt', 'spared', 'attempts', 'deadline', 'cancel', 'body',
  'served')
local until_ms, serves = redis.call('ZSCORE', served, fields[1]), ''
if until_ms and tonumber(until_ms) >= now then
  serves = 'live'
elseif fields[9] == '1' or tonumber(fields[3]) > 1 then
  serves = 'before'
end
return {fields[1], fields[2], fields[3], text(fields[3] - fields[4]), fields[5], text(fields[6] - now), fields[7] or '',
  serves, fields[8]}
