-- Keep the alerts that are raised now, in place of those before.
--
-- KEYS  1 alerts
-- ARGV  1 seconds they are remembered   2.. their names; none: nothing is kept
-- Answer  1.
-- Example EVALSHA … 1 trunkline:alerts:{ws} 3600 cpu_usage queue_length → (integer) 1

redis.call('DEL', KEYS[1])
if #ARGV > 1 then
  redis.call('SADD', KEYS[1], unpack(ARGV, 2))
  redis.call('EXPIRE', KEYS[1], ARGV[1])
end
return 1
