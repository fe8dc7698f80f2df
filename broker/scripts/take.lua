-- Count one message of a holder in its window, if there is room.
--
-- KEYS  1 the window's counter
-- ARGV  1 limit    2 length of the window (ms), which starts with its first message
-- Answer  {1 granted or 0 refused, messages granted in the window so far, ms until it ends}
--         What is refused is not counted; of a window that has not started, the whole length is left.
-- Example EVALSHA … 1 trunkline:messages:{freeagentics:user-1} 100 60000 → {1, 1, 60000}

local key, limit, window = KEYS[1], tonumber(ARGV[1]), tonumber(ARGV[2])

-- Negative: there is no window. A counter that never ends (not one of ours) is none either.
local left = redis.call('PTTL', key)
local used = 0
if left >= 0 then used = tonumber(redis.call('GET', key) or '0') end

if used >= limit then return {0, used, left >= 0 and left or window} end
if left < 0 then
  redis.call('SET', key, 1, 'PX', window)
  return {1, 1, window}
end
return {1, redis.call('INCR', key), left}
