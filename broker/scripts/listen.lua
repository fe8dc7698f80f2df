-- Say that somebody listens for an agent, keep what it works on, and take over what nobody works on any more.
-- Called when it begins and at every beat; also makes anew what Redis has lost.
--
-- KEYS  1 command stream   2 listening   3 agent hash   4 deleted
-- ARGV  1 listener, also its name as a consumer   2 ms that somebody is taken to listen   3 seconds that the stream lives
--       4 idle ms after which a consumer has died  5 commands it has room for
--       6 the agent   7.. ids of the commands it holds
-- Answer  Redis' time (ms), and the entries that are its own now: [id, [field, value]], in their order; the time alone
--         for an agent that was deleted: of it no key is made
-- Example EVALSHA … 4 trunkline:commands:{ws}:a1 trunkline:listening:{ws}:a1 trunkline:agent:{ws}:a1
--           trunkline:deleted:{ws} l1 15000 3600 15000 100 a1 1790000000000-0
--         → 1) "1790000016000" 2) 1) 1) "1790000000500-0" 2) 1) "c" 2) '{"deadline":…}'

local stream, listening, listener = KEYS[1], KEYS[2], ARGV[1]
local idle_ms, room = tonumber(ARGV[4]), tonumber(ARGV[5])

local time = redis.call('TIME')
local now = string.format('%.0f', time[1] * 1000 + math.floor(time[2] / 1000))
local known = redis.call('HMGET', KEYS[3], 'last_activity', 'created', 'deleted')
if not known[1] and not known[2] and (known[3] or redis.call('ZSCORE', KEYS[4], ARGV[6])) then return {now} end

redis.pcall('XGROUP', 'CREATE', stream, 'agent', '0', 'MKSTREAM')  -- fails when it is there
redis.call('EXPIRE', stream, ARGV[3])
redis.call('SET', listening, listener, 'PX', ARGV[2])
-- Makes the consumer, and shows that it lives: a blocking read that brings nothing does not, before Redis 7.2.
redis.call('XREADGROUP', 'GROUP', 'agent', listener, 'COUNT', 1, 'STREAMS', stream, '0')

local is_held = {}
for i = 7, #ARGV do is_held[ARGV[i]] = true end

local taken = {}
for _, pending in ipairs(redis.call('XPENDING', stream, 'agent', '-', '+', 1000)) do
  local id, consumer, idle = pending[1], pending[2], pending[3]
  local is_own = consumer == listener
  if is_own and is_held[id] then
    redis.call('XCLAIM', stream, 'agent', listener, 0, id, 'JUSTID')
  elseif #taken < room and (is_own or idle >= idle_ms) then
    -- One of its own that it does not hold: the answer that brought it was lost.
    local entry = redis.call('XCLAIM', stream, 'agent', listener, 0, id)[1]
    if entry then taken[#taken + 1] = entry else redis.call('XACK', stream, 'agent', id) end
  end
end

-- Consumers that died and left nothing.
for _, fields in ipairs(redis.call('XINFO', 'CONSUMERS', stream, 'agent')) do
  local consumer = {}
  for i = 1, #fields, 2 do consumer[fields[i]] = fields[i + 1] end
  if consumer.pending == 0 and consumer.idle > 4 * idle_ms then
    redis.call('XGROUP', 'DELCONSUMER', stream, 'agent', consumer.name)
  end
end

return {now, taken}
