-- Tell the node that sent a command what became of it, unless its deadline has passed.
--
-- KEYS  1 replies of the node
-- ARGV  1 deadline (ms)   2 the reply's JSON   3 replies that are kept, about   4 seconds they live
-- Answer  1, or 0 when it was too late
-- Example EVALSHA … 1 trunkline:replies:{n1} 1790000030000 '{"key":"9f","outcome":"done",…}' 1000 60 → 1

local time = redis.call('TIME')
if time[1] * 1000 + math.floor(time[2] / 1000) >= tonumber(ARGV[1]) then return 0 end
redis.call('XADD', KEYS[1], 'MAXLEN', '~', ARGV[3], '*', 'r', ARGV[2])
redis.call('EXPIRE', KEYS[1], ARGV[4])
return 1
