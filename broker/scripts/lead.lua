-- Hold an election's lease, or give it back.
--
-- KEYS  1 election
-- ARGV  1 node    2 milliseconds the lease lives from now; 0 gives it back
-- Answer  1 when this node holds the lease now, else 0.
-- Example EVALSHA … 1 trunkline:election:{ws} node-1 6000 → (integer) 1

local holder = redis.call('GET', KEYS[1])
if holder and holder ~= ARGV[1] then return 0 end
if ARGV[2] == '0' then
  redis.call('DEL', KEYS[1])
  return 0
end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1
