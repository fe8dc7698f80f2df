-- Use a pairing key: once, and as long as it is valid.
--
-- KEYS  1 agent hash
-- ARGV  1 hash of the key   2 a random name of this call   3 ms that a key is valid, from the making of its agent
-- Answer  the agent's name, also when the same call comes again; nil when the key is another, used or too old.
-- Example EVALSHA … 1 trunkline:agent:{ws}:agent-1 9f86… 7c 86400000 → "Data Pipeline Agent"

local agent = KEYS[1]
local known = redis.call('HMGET', agent, 'pairing', 'created', 'paired', 'name')
if not known[1] or known[1] ~= ARGV[1] then return false end
if known[3] then return known[3] == ARGV[2] and known[4] end

local time = redis.call('TIME')
if time[1] * 1000 + math.floor(time[2] / 1000) >= known[2] + ARGV[3] then return false end
redis.call('HSET', agent, 'paired', ARGV[2])
return known[4]
