-- A stretch of a workspace's agents, newest first, and how many there are.
--
-- KEYS  1 agents   2 errors   3 presence
-- ARGV  1 'online', 'offline' or 'error', '' for all   2 offset   3 limit
-- Answer  how many match, then an id and where it stands in the order (newer is more), for each of the stretch
-- Example EVALSHA … 3 trunkline:agents:{ws} trunkline:errors:{ws} trunkline:presence:{ws} online 0 20
--         → 1) "1" 2) "agent-1" 3) "1790000000000"

local agents, status, offset, limit = KEYS[1], ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local function text(number) return string.format('%.0f', number) end

if status == '' then
  local answer = redis.call('ZREVRANGE', agents, offset, offset + limit - 1, 'WITHSCORES')
  table.insert(answer, 1, text(redis.call('ZCARD', agents)))
  return answer
end

-- Whose last word was an error, and who else is present: of those that were created, each with its place in the order.
local function found(names, without)
  local list, of = {}, {}
  for _, name in ipairs(names) do
    local place = not without[name] and redis.call('ZSCORE', agents, name)
    if place then
      list[#list + 1] = {name, place}
      of[name] = true
    end
  end
  return list, of
end
local time = redis.call('TIME')
local now = text(time[1] * 1000 + math.floor(time[2] / 1000))
local failed, has_failed = found(redis.call('SMEMBERS', KEYS[2]), {})
local present, is_present = found(redis.call('ZRANGEBYSCORE', KEYS[3], '(' .. now, '+inf'), has_failed)

if status ~= 'offline' then
  local list = status == 'error' and failed or present
  table.sort(list, function(one, other) return tonumber(one[2]) > tonumber(other[2]) end)
  local answer = {text(#list)}
  for i = offset + 1, math.min(offset + limit, #list) do
    answer[#answer + 1] = list[i][1]
    answer[#answer + 1] = list[i][2]
  end
  return answer
end

-- The others, as far as the stretch reaches.
local SOME = 1000
local answer, start, passed = {text(redis.call('ZCARD', agents) - #failed - #present)}, 0, 0
while #answer < 1 + 2 * limit do
  local some = redis.call('ZREVRANGE', agents, start, start + SOME - 1, 'WITHSCORES')
  for i = 1, #some, 2 do
    if not has_failed[some[i]] and not is_present[some[i]] then
      passed = passed + 1
      if passed > offset and #answer < 1 + 2 * limit then
        answer[#answer + 1] = some[i]
        answer[#answer + 1] = some[i + 1]
      end
    end
  end
  if #some < 2 * SOME then break end
  start = start + SOME
end
return answer
