-- A listener goes: what it leaves unsettled may be taken over at once, and it is taken to listen no more.
--
-- KEYS  1 command stream   2 listening
-- ARGV  1 listener   2 idle ms after which others take over   3 ms in which another listener renews that
-- Answer  the number of commands that it left
-- Example EVALSHA … 2 trunkline:commands:{ws}:a1 trunkline:listening:{ws}:a1 l1 15000 6000 → 0

local stream, listening, listener = KEYS[1], KEYS[2], ARGV[1]

local left, others = 0, false
-- Without the stream or its group there is nothing to leave: an error table, with no numbered part.
for _, pending in ipairs(redis.pcall('XPENDING', stream, 'agent', '-', '+', 1000, listener)) do
  -- To a consumer that never lives, idle for long enough. A consumer that goes takes with it what it still has.
  redis.call('XCLAIM', stream, 'agent', 'nobody', 0, pending[1], 'IDLE', ARGV[2], 'JUSTID')
  left = left + 1
end
redis.pcall('XGROUP', 'DELCONSUMER', stream, 'agent', listener)
for _, fields in ipairs(redis.pcall('XINFO', 'CONSUMERS', stream, 'agent')) do
  for i = 1, #fields, 2 do
    if fields[i] == 'name' and fields[i + 1] ~= 'nobody' then others = true end
  end
end

-- Another that listens renews it in time, if it lives.
if redis.call('GET', listening) == listener then
  if others then redis.call('PEXPIRE', listening, ARGV[3]) else redis.call('DEL', listening) end
end
return left
