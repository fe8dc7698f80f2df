-- Take a run whose deadline has passed out of the hands of nobody: the caller holds it then, and says its end.
--
-- KEYS  1 run   2 runs   3 held   4 queued
-- ARGV  1 execution   2 holder: a random name of the caller   3 length of its lease (ms)
-- Answer  'held', 'ended' (before, or it never was), 'early', or 'busy': another holds it. Again: the same, for the same
--         caller.
-- Example EVALSHA … 4 trunkline:run:{ws}:exec_1 trunkline:runs:{ws}:shop trunkline:held:{ws}:shop trunkline:queued:{ws}
--           exec_1 9f 10000 → "held"

local run, queue, held, queued = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local known = redis.call('HMGET', run, 'state', 'holder', 'entry', 'deadline')
local state = known[1]
if state ~= 'queued' and state ~= 'running' then return 'ended' end

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
if now < tonumber(known[4]) then return 'early' end
if state == 'running' and known[2] ~= ARGV[2] then
  local due = redis.call('ZSCORE', held, ARGV[1])
  if due and tonumber(due) > now then return 'busy' end
end
redis.pcall('XACK', queue, 'workers', known[3])  -- fails without a group
redis.call('XDEL', queue, known[3])
redis.call('ZREM', queued, ARGV[1])
redis.call('HSET', run, 'state', 'running', 'holder', ARGV[2])
redis.call('ZADD', held, string.format('%.0f', now + ARGV[3]), ARGV[1])
return 'held'
