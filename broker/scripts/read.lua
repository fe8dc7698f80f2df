-- Read agents of a workspace, all as they are at one moment.
--
-- KEYS  1 presence
-- ARGV  1 the names of agents' hashes up to the agent: they lie in the same slot   2 how many fields
--       3.. the fields, then the agents
-- Answer  for each agent 1 if it is present, else 0, and its fields
-- Example EVALSHA … 1 trunkline:presence:{ws} trunkline:agent:{ws}: 2 created name agent-1
--         → 1) 1) (integer) 1  2) 1) "1790000000000"  2) "Alpha"

local last = 2 + ARGV[2]
local fields = {unpack(ARGV, 3, last)}
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local answer = {}
for i = last + 1, #ARGV do
  local ends = redis.call('ZSCORE', KEYS[1], ARGV[i])
  local is_present = ends and tonumber(ends) > now
  answer[#answer + 1] = {is_present and 1 or 0, redis.call('HMGET', ARGV[1] .. ARGV[i], unpack(fields))}
end
return answer
