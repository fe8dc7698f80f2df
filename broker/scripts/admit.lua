-- Give a connection its places, all of them or none, and note its admission.
--
-- KEYS  a sorted set of leases for each place, and last, if there is a pace, the sorted set of its admissions
-- ARGV  1 lease    2 length of a lease (ms)    3 number of places, then the limit of each, in the order of KEYS
--       then, if there is a pace: its limit, and the length of its sliding window (ms)
-- Answer  {1 admitted or 0 refused, which of KEYS refused (0: none), ms until it may be asked again,
--          then the leases under each place: the new one is among them if it was admitted}
--         What is refused has taken no place and is no admission.
-- Example EVALSHA … 2 trunkline:connections:{limits}:freeagentics:user:u1 trunkline:admissions:{limits}:freeagentics:u1
--           9f0c 45000 1 5 10 60000 → {1, 0, 0, 3}

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local lease, length, places = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])

local refused, wait = 0, 0
local answer = {1, 0, 0}
for i = 1, #KEYS do
  local is_place = i <= places
  local limit, age, window = tonumber(ARGV[3 + i]), 0, length
  if not is_place then
    age = tonumber(ARGV[4 + i])  -- leases stand under their end, admissions under their beginning
    window = age
  end
  redis.call('ZREMRANGEBYSCORE', KEYS[i], '-inf', now - age)
  local count = redis.call('ZCARD', KEYS[i])
  if count >= limit and refused == 0 then
    refused, wait = i, window
    -- The one whose end makes room; a limit of 0 has none.
    local entry = redis.call('ZRANGE', KEYS[i], count - limit, count - limit, 'WITHSCORES')
    if entry[2] then wait = tonumber(entry[2]) + age - now end
  end
  if is_place then answer[3 + i] = count end
end
if refused > 0 then
  answer[1], answer[2], answer[3] = 0, refused, wait
  return answer
end

for i = 1, places do
  redis.call('ZADD', KEYS[i], now + length, lease)
  redis.call('PEXPIRE', KEYS[i], length)
  answer[3 + i] = answer[3 + i] + 1
end
if #KEYS > places then
  redis.call('ZADD', KEYS[#KEYS], now, lease)
  redis.call('PEXPIRE', KEYS[#KEYS], ARGV[#ARGV])
end
return answer
