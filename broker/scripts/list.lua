-- A stretch of a workspace's agents, newest first, and how many there are. What it costs does not grow with them.
--
-- KEYS  1 presence   2 online   3 offline   4 those that are asked for: agents, or online, offline or errors
-- ARGV  1 offset   2 limit   3 the place from which on; +inf: the newest
-- Answer  how many there are, then an id and where it stands in the order (newer is more), for each of the stretch
-- Example EVALSHA … 4 trunkline:presence:{ws} trunkline:online:{ws} trunkline:offline:{ws} trunkline:online:{ws}
--           0 20 +inf → 1) "1" 2) "agent-1" 3) "1790000000000"

local presence, online, offline, asked = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local function text(number) return string.format('%.0f', number) end

-- A lease that has ended counts at once, though presence.lua has yet to tell it. When all leases have expired together
-- nobody ever will.
local function ended()
  if redis.call('EXISTS', presence) == 0 then return redis.call('ZRANGE', online, 0, -1) end
  local time = redis.call('TIME')
  return redis.call('ZRANGEBYSCORE', presence, '-inf', text(time[1] * 1000 + math.floor(time[2] / 1000)))
end
for _, name in ipairs(ended()) do
  local place = redis.call('ZSCORE', online, name)
  if place then
    redis.call('ZREM', online, name)
    redis.call('ZADD', offline, place, name)
  end
end

local first = redis.call('ZCOUNT', asked, '(' .. ARGV[3], '+inf') + ARGV[1]
local answer = redis.call('ZREVRANGE', asked, first, first + ARGV[2] - 1, 'WITHSCORES')
table.insert(answer, 1, text(redis.call('ZCARD', asked)))
return answer
