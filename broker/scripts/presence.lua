-- Keep the leases by which agents are present; tell that one has come and that one has gone, as one step with that: by
-- `agent.online` and `agent.offline`, and by an `agent_status` unless the agent is in error.
-- A call that comes again finds what the first has done, and tells nothing twice; so do two that sweep.
--
-- KEYS  1 presence   2 farewells   3 deleted   4 log   5 workspace   6 online   7 offline
-- ARGV  1 'renew': the agents live      'leave': somebody says goodbye for them, which is a sign of life too
--         'sweep': tell which leases have ended
--       2 the workspace   3 now, as events write it   4 ms that a lease lives   5 log_events   6 log_seconds
--       7 seconds state lives   8 PUBLISH or SPUBLISH   9 channel of the workspace
--       10 the names of agents' hashes up to the agent: they lie in the same slot, and who is swept is not known before
--       11 why they come or leave; for 'sweep' why one has gone that has not said so
--       12.. agents; for 'sweep' how many at most, and up to which time (ms): what has ended since then is left
-- Answer  renew: 1 for each agent, 0 for one that was deleted, of which nothing is kept
--         leave: for each agent 1 if it was present
--         sweep: how many leases have ended, and how many are left
-- Example EVALSHA … 7 trunkline:presence:{ws} trunkline:farewells:{ws} trunkline:deleted:{ws} trunkline:log:{ws}
--           trunkline:workspace:{ws} trunkline:online:{ws} trunkline:offline:{ws} renew ws 2026-03-27T10:30:00.000Z 15000 10000 3600 604800 PUBLISH
--           trunkline:events:{ws} trunkline:agent:{ws}: 'Client connected' agent-1 → 1) (integer) 1

local presence, farewells, deleted, log, workspace = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local online, offline = KEYS[6], KEYS[7]
local action, reason = ARGV[1], ARGV[11]

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local function text(number) return string.format('%.0f', number) end
-- As all events write it: cjson also quotes slashes.
local function json(value) return (string.gsub(cjson.encode(value), '\\/', '/')) end

-- In a cluster a key may be on its way to another node, and a script that meets one ends there: before it has done
-- anything, therefore.
local ended
if action == 'sweep' then
  local until_then = text(math.min(now, tonumber(ARGV[13])))
  ended = redis.call('ZRANGEBYSCORE', presence, '-inf', until_then, 'LIMIT', 0, ARGV[12])
end
for _, agent in ipairs(ended or {unpack(ARGV, 12)}) do redis.call('EXISTS', ARGV[10] .. agent) end

-- What came late of an agent that was deleted is not kept (publish.lua).
local function is_deleted(agent)
  local known = redis.call('HMGET', ARGV[10] .. agent, 'last_activity', 'created', 'deleted')
  if known[1] or known[2] then return false end
  return known[3] or redis.call('ZSCORE', deleted, agent)
end

-- An event goes the way of all events (publish.lua); whoever follows hears of it when all is done.
local messages = {}
local function tell(agent, kind, data)
  local hash = ARGV[10] .. agent
  local known = redis.call('HMGET', hash, 'position', 'created')
  local newest = redis.call('HGET', workspace, 'position') or '0-0'
  local next_id = '*'
  if newest ~= '0-0' and redis.call('EXISTS', log) == 0 then
    local milliseconds, sequence = string.match(newest, '(%d+)-(%d+)')
    if tonumber(milliseconds) >= now then next_id = milliseconds .. '-' .. text(sequence + 1) end
  end
  local entry = '"prev":"' .. newest .. '","agent_prev":"' .. (known[1] or '0-0') .. '","timestamp":"' .. ARGV[3]
    .. '","type":"' .. kind .. '","workspace_id":' .. json(ARGV[2]) .. ',"agent_id":' .. json(agent)
    .. ',"data":' .. data .. '}'
  local position = redis.call('XADD', log, 'MAXLEN', '=', ARGV[5], next_id, 'e', entry)
  redis.call('XTRIM', log, 'MINID', '=', text(now - ARGV[6] * 1000))
  redis.call('EXPIRE', log, ARGV[6])
  redis.call('HSET', workspace, 'position', position)
  redis.call('EXPIRE', workspace, ARGV[7])
  redis.call('HSET', hash, 'position', position)
  if kind == 'agent.online' then redis.call('HSET', hash, 'last_activity', text(now)) end
  if not known[2] then redis.call('EXPIRE', hash, ARGV[7]) end
  messages[#messages + 1] = {agent, '{"id":"' .. position .. '",' .. entry}
end

-- FreeAgentics' word for the same: its status is another now. One that is in error stays so, here or not (records.py).
local function tell_status(agent, old, new, why)
  if redis.call('HEXISTS', ARGV[10] .. agent, 'state') == 1 then return end
  local status = '{"old_status":"' .. old .. '","new_status":"' .. new .. '","reason":' .. json(why) .. '}'
  tell(agent, 'agent_status', status)
end

-- Those of the registry are listed by their status, in the order of their making; who is in error is in neither.
local function list(agent, from, to)
  local place = redis.call('ZSCORE', from, agent)
  if not place then return end
  redis.call('ZREM', from, agent)
  redis.call('ZADD', to, place, agent)
end

local function end_lease(agent)
  if not is_deleted(agent) then
    local why = redis.call('HGET', farewells, agent) or reason
    tell(agent, 'agent.offline', '{"reason":' .. json(why) .. '}')
    tell_status(agent, 'online', 'offline', why)
  end
  redis.call('ZREM', presence, agent)
  redis.call('HDEL', farewells, agent)
  list(agent, online, offline)
end

-- Also one whose lease has ended, as long as nobody was told so: after an outage of Redis all of them have.
local function is_present(agent) return redis.call('ZSCORE', presence, agent) end

local function renew(agent)
  if not is_present(agent) then
    if is_deleted(agent) then return 0 end
    tell(agent, 'agent.online', '{}')
    tell_status(agent, 'offline', 'online', reason)
  end
  redis.call('ZADD', presence, text(now + ARGV[4]), agent)
  redis.call('HDEL', farewells, agent)
  list(agent, offline, online)
  return 1
end

local function leave(agent)
  if not is_present(agent) then return 0 end
  redis.call('ZADD', presence, text(now + ARGV[4]), agent)
  redis.call('HSET', farewells, agent, reason)
  list(agent, offline, online)
  return 1
end

local answer = {}
if action == 'sweep' then
  for _, agent in ipairs(ended) do end_lease(agent) end
  -- The clock has gone back: without a sign of life by this one they end like all others.
  local longest = text(now + ARGV[4])
  for _, agent in ipairs(redis.call('ZRANGEBYSCORE', presence, '(' .. longest, '+inf', 'LIMIT', 0, ARGV[12])) do
    redis.call('ZADD', presence, longest, agent)
  end
  answer = {#ended, redis.call('ZCARD', presence)}
else
  for i = 12, #ARGV do answer[#answer + 1] = (action == 'renew' and renew or leave)(ARGV[i]) end
  redis.call('EXPIRE', presence, ARGV[7])
  redis.call('EXPIRE', farewells, ARGV[7])
end

-- Last, as in publish.lua.
for _, message in ipairs(messages) do
  redis.call(ARGV[8], ARGV[9], message[2])
  redis.call(ARGV[8], ARGV[9] .. ':' .. message[1], message[2])
end
return answer
