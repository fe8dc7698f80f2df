-- Note a node's CPU and memory, and answer those of all nodes that were heard lately. The others are removed.
--
-- KEYS  1 nodes
-- ARGV  1 node    2 its CPU (%)    3 its memory (%)    4 milliseconds for which a beat counts
--       5 seconds the key lives
-- Answer  CPU and memory of each node in turn, as said, this one's among them.
-- Example EVALSHA … 1 trunkline:nodes node-1 45.2 62.8 10000 60 → 1) "45.2" 2) "62.8" 3) "12.5" 4) "30.0"

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

redis.call('HSET', KEYS[1], ARGV[1], string.format('%.0f', now) .. ' ' .. ARGV[2] .. ' ' .. ARGV[3])
redis.call('EXPIRE', KEYS[1], ARGV[5])

local answer = {}
local beats = redis.call('HGETALL', KEYS[1])
for i = 1, #beats, 2 do
  local at, cpu, memory = string.match(beats[i + 1], '^(%d+) (%S+) (%S+)$')
  -- One from the future is as old as it is early: Redis' clock has gone back.
  if at and math.abs(now - at) <= tonumber(ARGV[4]) then
    answer[#answer + 1] = cpu
    answer[#answer + 1] = memory
  else
    redis.call('HDEL', KEYS[1], beats[i])
  end
end
return answer
