-- Append a producer's call to its workspace's log and tell every node, as one step.
--
-- KEYS  1 log   2 workspace   3 producer   4.. one agent hash for each agent of the call
--       then for each run whose holder speaks: the run, the endpoint's held, and the run's end
--       last, in a cluster, what the registry keeps of all agents together (Keyspace.registry)
-- ARGV  1 number of the call     2 log_events    3 log_seconds    4 seconds the producer's record lives
--       5 seconds state lives    6 PUBLISH or SPUBLISH            7 channel of the workspace
--       8 number of agents, then a channel for each, in the order of KEYS
--       then for each event, at most 100: index of its agent (from 1), kind, body
--         kind  the credits it used, '0' for most; '-' for an ephemeral event; for what the holder of a run says
--               '@<index of the run in KEYS> <holder> <state> <execution>', with the state in which the event ends
--               the run, '' for an event that does not
--         body  the event's JSON without its opening brace: "type":"task.progress",…}
-- Answer  an array with the position of each event, '' for an ephemeral one and for one of an agent that was deleted
--         (live only: nothing is kept of it), '!' for one that was refused: somebody else holds its run, or the run
--         has ended. Of a refused event nothing is left; the others are not touched.
--         The same number again gets the same answer, and nothing else happens.
-- Error   OUT_OF_ORDER <last number>: the record does not continue with this number.
-- Example EVALSHA … 4 trunkline:log:{ws} trunkline:workspace:{ws} trunkline:producer:{ws}:p1 trunkline:agent:{ws}:a1
--           1 10000 3600 86400 604800 PUBLISH trunkline:events:{ws} 1 trunkline:events:{ws}:a1
--           1 0 '"type":"agent.online","workspace_id":"ws","agent_id":"a1","timestamp":"…","data":{}}'
--         → 1) "1790000000000-0"

local log, workspace, producer = KEYS[1], KEYS[2], KEYS[3]
local number = tonumber(ARGV[1])

local record = redis.call('HMGET', producer, 'number', 'answer')
local last = tonumber(record[1] or '0')
if number == last then
  local kept = {}
  for position in string.gmatch(record[2], '([^,]*),') do kept[#kept + 1] = position end
  return kept
elseif number ~= last + 1 then
  return redis.error_reply('OUT_OF_ORDER ' .. last)
end

local command, workspace_channel, agents = ARGV[6], ARGV[7], tonumber(ARGV[8])
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

-- `prev` in a message is the position before it on the same channel: a node sees a hole at the next message. An
-- ephemeral one has none, and says so: it was published on both channels, unlike a plain PUBLISH.
local newest = redis.call('HGET', workspace, 'position') or '0-0'
-- `seen` has the agents that said something in this call, each with the position of its last durable event, if any.
local newest_of, credits, seen, states = {}, {}, {}, {}

-- What the registry (register.lua) keeps of all agents together lies in this slot too. It is asked seldom, so that it is
-- named only in a cluster: there this script must not run while one of its keys is on the way to another node.
local function beside(kind) return (string.gsub(workspace, ':workspace:{', ':' .. kind .. ':{', 1)) end
local function name_of(agent) return string.match(KEYS[3 + agent], '^[^}]*}:(.*)$') end

-- What is known of each agent before this call.
local is_created, is_deleted = {}, {}
local function meet(agent)
  local key = KEYS[3 + agent]
  local known = redis.call('HMGET', key, 'position', 'last_activity', 'created')
  newest_of[agent] = known[1] or '0-0'
  if known[3] then
    is_created[agent] = true
  elseif not known[2] then
    is_deleted[agent] = redis.call('HEXISTS', key, 'deleted') == 1
      or redis.call('ZSCORE', beside('deleted'), name_of(agent))
  end
end

-- What an agent says of itself decides its status, until it says something else.
local function note_state(agent, body)
  local is_json, event = pcall(cjson.decode, '{' .. body)
  if is_json and event.type == 'agent_status' and type(event.data) == 'table' then
    states[agent] = event.data.new_status
  end
end

for agent = 1, agents do meet(agent) end

-- An agent of the registry is listed under its status alone: `online`, `offline` or `errors`.
local function list(name, state)
  local is_present = redis.call('ZSCORE', beside('presence'), name)
  local status = state == 'error' and 'errors' or is_present and 'online' or 'offline'
  local place = redis.call('ZSCORE', beside('agents'), name)
  for _, other in ipairs({'online', 'offline', 'errors'}) do redis.call('ZREM', beside(other), name) end
  redis.call('ZADD', beside(status), place, name)
end

-- The log expires when idle. Should the clock have gone back meanwhile, positions still only grow.
local next_id = '*'
if newest ~= '0-0' and redis.call('EXISTS', log) == 0 then
  local milliseconds, sequence = string.match(newest, '(%d+)-(%d+)')
  if tonumber(milliseconds) >= now then next_id = milliseconds .. '-' .. string.format('%.0f', sequence + 1) end
end

-- Who holds a run may speak of it, until an event ends it: so there is one such event, whoever else believes to hold it.
local function is_refused(kind)
  local run, holder = string.match(kind, '^@(%d+) (%S+) ')
  return redis.call('HGET', KEYS[tonumber(run)], 'holder') ~= holder
end

local function end_run(kind, position, entry)
  local index, state, execution = string.match(kind, '^@(%d+) %S+ (%l+) (.+)$')
  if not index then return end
  local run, held = KEYS[tonumber(index)], KEYS[index + 1]
  redis.call('HSET', run, 'state', state)
  redis.call('HDEL', run, 'holder', 'body')
  redis.call('EXPIRE', run, ARGV[4])
  redis.call('ZREM', held, execution)
  -- Who asks for it later must hear how it ended, whatever else has pushed that out of the log. Of an agent that was
  -- deleted nothing is kept.
  if position then redis.call('SET', KEYS[index + 2], position .. ' ' .. entry, 'EX', ARGV[3]) end
end

local positions, messages = {}, {}
for i = 9 + agents, #ARGV, 3 do
  local agent, kind, body = tonumber(ARGV[i]), ARGV[i + 1], ARGV[i + 2]
  local is_held = kind ~= '0' and string.byte(kind) == 64
  if is_held and is_refused(kind) then
    positions[#positions + 1] = '!'
    messages[#messages + 1] = false
  elseif kind == '-' or is_deleted[agent] then
    if is_held then end_run(kind) end
    if not is_deleted[agent] then seen[agent] = seen[agent] or false end
    positions[#positions + 1] = ''
    messages[#messages + 1] = '{"prev":"",' .. body
  else
    local entry = '"prev":"' .. newest .. '","agent_prev":"' .. newest_of[agent] .. '",' .. body
    newest = redis.call('XADD', log, 'MAXLEN', '=', ARGV[2], next_id, 'e', entry)
    next_id = '*'
    newest_of[agent], seen[agent] = newest, newest
    if is_held then
      end_run(kind, newest, entry)
    elseif kind ~= '0' then
      credits[agent] = (credits[agent] or 0) + tonumber(kind)
    end
    positions[#positions + 1] = newest
    messages[#messages + 1] = '{"id":"' .. newest .. '",' .. entry
  end
  -- Sought by what is rare in events: this is done for each of them.
  if seen[agent] ~= nil and string.find(body, '_status"', 1, true) then note_state(agent, body) end
end

redis.call('HSET', producer, 'number', number, 'answer', table.concat(positions, ',') .. ',')
redis.call('EXPIRE', producer, ARGV[4])
if newest ~= '0-0' then
  redis.call('XTRIM', log, 'MINID', '=', string.format('%.0f', now - ARGV[3] * 1000))
  redis.call('EXPIRE', log, ARGV[3])
  redis.call('HSET', workspace, 'position', newest)
  redis.call('EXPIRE', workspace, ARGV[5])
end
local moment = string.format('%.0f', now)
for agent, position in pairs(seen) do
  local key, state = KEYS[3 + agent], states[agent]
  if position then
    redis.call('HSET', key, 'last_activity', moment, 'position', position)
  else
    redis.call('HSET', key, 'last_activity', moment)
  end
  if credits[agent] then
    -- A total past 64 bits must not stop the script half done: it stays where it is.
    redis.pcall('HINCRBY', key, 'credits_used', string.format('%.0f', credits[agent]))
  end
  if state then
    if state == 'error' then redis.call('HSET', key, 'state', state) else redis.call('HDEL', key, 'state') end
    if is_created[agent] then list(name_of(agent), state) end
  end
  -- A created agent stays until it is deleted.
  if not is_created[agent] then redis.call('EXPIRE', key, ARGV[5]) end
end

-- Last, so that a script that fails has told nobody, and a node that reads after the message finds everything.
for i = 1, #messages do
  local agent = tonumber(ARGV[9 + agents + 3 * (i - 1)])
  if messages[i] then
    redis.call(command, workspace_channel, messages[i])
    redis.call(command, ARGV[8 + agent], messages[i])
  end
end
return positions
