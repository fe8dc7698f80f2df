-- Send a command to an agent that listens.
--
-- KEYS  1 listening   2 agent hash   3 command stream   4 waiting   5 deleted
-- ARGV  1 the command's key    2 ms until its deadline    3 commands that may wait for an agent
--       4 seconds that stream and waiting live            5 the command's JSON without its opening brace
--       6 Redis' time (ms) after which nobody waits for this call's answer any more; '' is never
--       7 the agent
-- Answer  'sent' and the entry's id; or one of
--         'unknown' (never published, listened nor was created; or was deleted), 'offline' (nobody listens), 'full', 'late', and ''.
-- Example EVALSHA … 5 trunkline:listening:{ws}:a1 trunkline:agent:{ws}:a1 trunkline:commands:{ws}:a1
--           trunkline:waiting:{ws} trunkline:deleted:{ws} 9f 30000 1000 3600 '"key":"9f","node":"n1","request_id":"r1","name":"stop",…}' 1790000002000 a1
--         → 1) "sent" 2) "1790000000000-0"

local listening, agent, stream, waiting = KEYS[1], KEYS[2], KEYS[3], KEYS[4]

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
-- A Redis that stood still takes up what its sender has given up: it must not be done long after.
if ARGV[6] ~= '' and now > tonumber(ARGV[6]) then return {'late', ''} end

local known = redis.call('HMGET', agent, 'last_activity', 'created', 'deleted')
if not known[1] and not known[2] and (known[3] or redis.call('ZSCORE', KEYS[5], ARGV[7])) then return {'unknown', ''} end
if redis.call('EXISTS', listening) == 0 then
  return {redis.call('EXISTS', agent, stream) > 0 and 'offline' or 'unknown', ''}
end
if redis.call('XLEN', stream) >= tonumber(ARGV[3]) then return {'full', ''} end

local deadline = string.format('%.0f', now + ARGV[2])
local id = redis.call('XADD', stream, '*', 'c', '{"deadline":' .. deadline .. ',' .. ARGV[5])
redis.call('EXPIRE', stream, ARGV[4])
redis.call('ZADD', waiting, deadline, ARGV[1])
redis.call('EXPIRE', waiting, ARGV[4])
return {'sent', id}
