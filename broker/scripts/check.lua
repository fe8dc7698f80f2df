-- Look up an API key by its hash, and note the day when it opens its endpoint.
--
-- KEYS  1 key
-- ARGV  1 endpoint that it is to open
-- Answer  an array of its id, its endpoint and its workspace; nil when there is no such key or it is revoked.
-- Example EVALSHA … 1 trunkline:key:{keys}:9f86… coffee-shop-e66b8d23
--         → 1) "key_5d1c…" 2) "coffee-shop-e66b8d23" 3) "ws-456"

local record = redis.call('HMGET', KEYS[1], 'id', 'endpoint', 'workspace', 'revoked', 'used')
local id, endpoint, workspace, revoked, used = record[1], record[2], record[3], record[4], record[5]
if not id or revoked then return false end
if endpoint == ARGV[1] then
  local day = string.format('%.0f', math.floor(redis.call('TIME')[1] / 86400))
  -- A Redis that takes no writes (it is full, or lacks its replicas) must not keep anybody out.
  if used ~= day then redis.pcall('HSET', KEYS[1], 'used', day) end
end
return {id, endpoint, workspace}
