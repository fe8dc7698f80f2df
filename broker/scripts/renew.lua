-- Renew leases that a node holds. Those that Redis has not got (any more) come back while their places have room.
--
-- KEYS  the sorted sets of leases of all places that are named in ARGV, each once
-- ARGV  1 length of a lease (ms)
--       then for each lease: its id, the number of its places, and for each place: index in KEYS (from 1), limit
-- Answer  for each lease that is lost: its number in ARGV (from 1), the number of its first place that has no room
--         A lost lease has none of its places any more.
-- Example EVALSHA … 2 trunkline:connections:{limits}:freeagentics:user:u1 …:freeagentics:address:10.0.0.7
--           45000 9f0c 2 1 5 2 20 77ab 2 1 5 2 20 → {}  or, when only the first user's place of 77ab is gone: {2, 1}

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local length = tonumber(ARGV[1])
for i = 1, #KEYS do redis.call('ZREMRANGEBYSCORE', KEYS[i], '-inf', now) end

local lost = {}
local number, at = 0, 2
while at <= #ARGV do
  local lease, places = ARGV[at], tonumber(ARGV[at + 1])
  number = number + 1
  local full = 0
  for place = 1, places do
    local key, limit = KEYS[tonumber(ARGV[at + 2 * place])], tonumber(ARGV[at + 2 * place + 1])
    -- Who is there stays, even where the limit is lower now.
    if full == 0 and not redis.call('ZSCORE', key, lease) and redis.call('ZCARD', key) >= limit then full = place end
  end
  for place = 1, places do
    local key = KEYS[tonumber(ARGV[at + 2 * place])]
    if full == 0 then
      redis.call('ZADD', key, now + length, lease)
    else
      redis.call('ZREM', key, lease)
    end
  end
  if full > 0 then
    lost[#lost + 1] = number
    lost[#lost + 1] = full
  end
  at = at + 2 + 2 * places
end

for i = 1, #KEYS do redis.call('PEXPIRE', KEYS[i], length) end
return lost
