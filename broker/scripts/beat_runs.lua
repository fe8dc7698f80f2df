-- A worker's sign of life: keeps the runs it holds, says what it serves, and finds what nobody looks after.
-- Called when it begins and at every beat; also makes anew what Redis has lost.
--
-- KEYS  1 runs   2 held   3 served   4 returned   5.. the runs it believes to hold
-- ARGV  1 worker, also its name as a consumer   2 length of a lease (ms)   3 ms for which a workflow counts as served
--       4 ms for which it is remembered after that   5 ms for which nothing is taken over when workers were silent
--       6 ms for which a run is kept after its deadline   7 seconds the keys live
--       8 number of workflows, then their names; then for each run: its execution, its holder
-- Answer  'held', 'cancel' (held, and to be cancelled), 'late' (not renewed) or 'lost' for each run;
--         then what is due, at most 100: the entry, '' for none, and the execution, in turn
-- Example EVALSHA … 5 trunkline:runs:{ws}:shop trunkline:held:{ws}:shop trunkline:served:{ws}:shop
--           trunkline:returned:{ws}:shop trunkline:run:{ws}:exec_1 w1 10000 15000 60000 5000 5000 172800 1 search
--           exec_1 9f
--         → 1) 1) "held" 2) 1) "" 2) "exec_7"

local queue, held, served, returned, worker = KEYS[1], KEYS[2], KEYS[3], KEYS[4], ARGV[1]
local lease_ms = tonumber(ARGV[2])
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local function text(number) return string.format('%.0f', number) end

redis.pcall('XGROUP', 'CREATE', queue, 'workers', '0', 'MKSTREAM')  -- fails when it is there
-- Shows that the consumer lives: a blocking read that brings nothing does not, before Redis 7.2. It reads after the
-- last entry there can be, for what it read would look as if it had been delivered just now.
redis.call('XREADGROUP', 'GROUP', 'workers', worker, 'STREAMS', queue, '18446744073709551615-18446744073709551614')

local at = 9 + ARGV[8]
if at > 9 then
  -- Where no worker was heard for long, Redis was away, or all of them. Those who held runs may come back as this one
  -- does, and give back what they had to stop: that uses up no attempt, as it would if others were faster.
  local newest = redis.call('ZREVRANGE', served, 0, 0, 'WITHSCORES')[2]
  if not newest or now - (newest - ARGV[3]) > lease_ms / 2 then redis.call('SET', returned, 1, 'PX', ARGV[5]) end
end
for i = 9, at - 1 do redis.call('ZADD', served, text(now + ARGV[3]), ARGV[i]) end
redis.call('ZREMRANGEBYSCORE', served, '-inf', '(' .. text(now - ARGV[4]))

local states = {}
for i = 5, #KEYS do
  local execution, holder = ARGV[at + 2 * (i - 5)], ARGV[at + 1 + 2 * (i - 5)]
  local run = redis.call('HMGET', KEYS[i], 'holder', 'cancel', 'deadline')
  if run[1] ~= holder then
    states[#states + 1] = 'lost'
  elseif now > run[3] + ARGV[6] then
    states[#states + 1] = 'late'
  else
    redis.call('ZADD', held, text(now + lease_ms), execution)
    states[#states + 1] = run[2] and 'cancel' or 'held'
  end
end

local due = {}
for _, execution in ipairs(redis.call('ZRANGEBYSCORE', held, '-inf', text(now), 'LIMIT', 0, 50)) do
  due[#due + 1] = ''
  due[#due + 1] = execution
end
-- Entries that a worker was given and did not claim: it died in between, or their delivery was lost.
for _, pending in ipairs(redis.call('XPENDING', queue, 'workers', 'IDLE', lease_ms, '-', '+', 50)) do
  local entry = redis.call('XRANGE', queue, pending[1], pending[1])[1]
  if entry then
    due[#due + 1] = pending[1]
    due[#due + 1] = entry[2][2]
  else
    redis.call('XACK', queue, 'workers', pending[1])
  end
end

-- Consumers that died and left nothing.
for _, fields in ipairs(redis.call('XINFO', 'CONSUMERS', queue, 'workers')) do
  local consumer = {}
  for i = 1, #fields, 2 do consumer[fields[i]] = fields[i + 1] end
  if consumer.pending == 0 and consumer.idle > 6 * lease_ms then
    redis.call('XGROUP', 'DELCONSUMER', queue, 'workers', consumer.name)
  end
end

redis.call('EXPIRE', queue, ARGV[7])
redis.call('EXPIRE', held, ARGV[7])
redis.call('PEXPIRE', served, ARGV[3] + ARGV[4])
return {states, due}
