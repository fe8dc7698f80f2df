-- A stretch of a workspace's agents, newest first, and how many there are.
--
-- KEYS  1 agents   2 errors
-- ARGV  1 'online', 'offline' or 'error', '' for all   2 offset   3 limit
--       4 the names of presences up to the agent: they lie in the same slot
-- Answer  how many match, then an id and where it stands in the order (newer is more), for each of the stretch
-- Example EVALSHA … 2 trunkline:agents:{ws} trunkline:errors:{ws} online 0 20 trunkline:presence:{ws}:
--         → 1) "1" 2) "agent-1" 3) "1790000000000"

local agents, status, offset, limit = KEYS[1], ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local function text(number) return string.format('%.0f', number) end

if status == '' then
  local answer = redis.call('ZREVRANGE', agents, offset, offset + limit - 1, 'WITHSCORES')
  table.insert(answer, 1, text(redis.call('ZCARD', agents)))
  return answer
end

-- A presence ends by itself, so no index could follow it: all of them are asked, many at a time.
local SOME = 1000
local has_failed = {}
for _, name in ipairs(redis.call('SMEMBERS', KEYS[2])) do has_failed[name] = true end

local function is_present(names)
  local keys = {}
  for i, name in ipairs(names) do keys[i] = ARGV[4] .. name end
  return redis.call('MGET', unpack(keys))
end

local total, answer, names = 0, {'0'}, {}
local function take(name)
  total = total + 1
  if total > offset and total <= offset + limit then
    answer[#answer + 1] = name
    answer[#answer + 1] = redis.call('ZSCORE', agents, name)
  end
end
local function take_present()
  if #names == 0 then return end
  for i, holder in ipairs(is_present(names)) do
    if (holder and 'online' or 'offline') == status then take(names[i]) end
  end
  names = {}
end

for _, name in ipairs(redis.call('ZREVRANGE', agents, 0, -1)) do
  if status == 'error' then
    if has_failed[name] then take(name) end
  elseif not has_failed[name] then
    names[#names + 1] = name
    if #names == SOME then take_present() end
  end
end
take_present()
answer[1] = text(total)
return answer
