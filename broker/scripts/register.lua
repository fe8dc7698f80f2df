-- Make, change or delete an agent of the registry and tell everybody, as one step.
--
-- KEYS  1 agent hash   2 agents   3 errors   4 deleted   5 log   6 workspace   7 presence   8 farewells   9 online
--       10 offline
-- ARGV  1 'create', 'update' or 'delete'   2 agent   3 a random name of this call   4 the call whose outcome an update
--       changes; '' for the others         5 log_events   6 log_seconds   7 seconds state lives
--       8 PUBLISH or SPUBLISH   9 channel of the workspace   10 channel of the agent
--       11 the event that tells of it: its JSON without its opening brace, as for publish.lua
--       12.. fields and values that are set in the agent's hash; for 'delete' instead the event that is told before
--       the other of an agent that is present
-- Answer  'done', also when the same call comes again, be it after the agent it made was deleted; 'missing': there is no
--         such agent; 'changed': another call came before this one. Unless it is done nothing has happened.
-- Example EVALSHA … 10 trunkline:agent:{ws}:agent-1 trunkline:agents:{ws} trunkline:errors:{ws} trunkline:deleted:{ws}
--           trunkline:log:{ws} trunkline:workspace:{ws} trunkline:presence:{ws} trunkline:farewells:{ws}
--           trunkline:online:{ws} trunkline:offline:{ws} update agent-1 9f 7c 10000 3600 604800 PUBLISH
--           trunkline:events:{ws} trunkline:events:{ws}:agent-1 '"type":"agent_updated",…}' name Alpha → "done"

local agent, agents, errors, deleted, log, workspace = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6]
local presence, farewells, online, offline = KEYS[7], KEYS[8], KEYS[9], KEYS[10]
local action, name, call = ARGV[1], ARGV[2], ARGV[3]

-- `calls` are the last ones that changed the agent, newest first: so many may come between a call and its repetition.
local CALLS = 32

local known = redis.call('HMGET', agent, 'created', 'calls', 'deleted', 'position')
local calls = known[2] or ''
if string.find(calls, call, 1, true) or known[3] == call then return 'done' end
if action == 'create' then
  if known[1] then return 'changed' end
  -- Made by this call, whose answer was lost, and deleted since: it must not come back.
  if redis.call('ZSCORE', deleted, name) then return 'done' end
else
  if not known[1] then return 'missing' end
  if action == 'update' and string.match(calls, '^[^,]*') ~= ARGV[4] then return 'changed' end
end

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local function text(number) return string.format('%.0f', number) end

-- An event goes the way of all events (publish.lua).
local newest, position = redis.call('HGET', workspace, 'position') or '0-0', known[4] or '0-0'
local messages = {}
local function tell(body)
  local next_id = '*'
  if newest ~= '0-0' and redis.call('EXISTS', log) == 0 then
    local milliseconds, sequence = string.match(newest, '(%d+)-(%d+)')
    if tonumber(milliseconds) >= now then next_id = milliseconds .. '-' .. text(sequence + 1) end
  end
  local entry = '"prev":"' .. newest .. '","agent_prev":"' .. position .. '",' .. body
  position = redis.call('XADD', log, 'MAXLEN', '=', ARGV[5], next_id, 'e', entry)
  newest = position
  messages[#messages + 1] = '{"id":"' .. position .. '",' .. entry
end
if action == 'delete' and redis.call('ZSCORE', presence, name) then tell(ARGV[12]) end
tell(ARGV[11])
redis.call('XTRIM', log, 'MINID', '=', text(now - ARGV[6] * 1000))
redis.call('EXPIRE', log, ARGV[6])
redis.call('HSET', workspace, 'position', position)
redis.call('EXPIRE', workspace, ARGV[7])

if action == 'delete' then
  -- What is left says where the agent's events end, and that what comes late is not to be kept.
  redis.call('DEL', agent)
  redis.call('HSET', agent, 'position', position, 'deleted', call)
  redis.call('EXPIRE', agent, ARGV[7])
  for _, names in ipairs({agents, online, offline, errors, presence}) do redis.call('ZREM', names, name) end
  redis.call('HDEL', farewells, name)
  -- For good: its token may live for years, and must never open anything again.
  redis.call('ZADD', deleted, text(now), name)
else
  local kept = {}
  for one in string.gmatch(calls, '[^,]+') do
    if #kept < CALLS - 1 then kept[#kept + 1] = one end
  end
  table.insert(kept, 1, call)
  redis.call('HSET', agent, 'position', position, 'calls', table.concat(kept, ','))
  for i = 12, #ARGV, 2 do redis.call('HSET', agent, ARGV[i], ARGV[i + 1]) end
end
if action == 'create' then
  -- In the order of their making, also those of one millisecond.
  local last = redis.call('ZREVRANGE', agents, 0, 0, 'WITHSCORES')[2]
  local place = text(math.max(now, tonumber(last or '0') + 1))
  redis.call('ZADD', agents, place, name)
  redis.call('ZADD', offline, place, name)
  redis.call('HSET', agent, 'created', text(now))
  redis.call('PERSIST', agent)
end

for _, message in ipairs(messages) do
  redis.call(ARGV[8], ARGV[9], message)
  redis.call(ARGV[8], ARGV[10], message)
end
return 'done'
