-- Copy a stretch of a workspace's log without the events of one agent. The stretch with the end of the log puts the
-- copy in the log's place. Each `prev` in it names the entry before it there, so that no reader misses what is gone.
--
-- KEYS  1 log   2 copy, of this purge alone   3 workspace
-- ARGV  1 agent   2 position of its event that stays: the one that says it was deleted
--       3 entries in a stretch, at most: large ones are fewer   4 seconds that an unfinished copy lives
--       then, unless this is the first stretch, what the call before it answered: 5 purges of the workspace so far,
--       6 the position to go on after, 7 the position before the events that were just left out, '' when none were,
--       8 the last position in the copy, '' for none
-- Answer  ARGV 5 to 8 of the next call; nothing when it is done; '' alone to begin anew.
-- Example EVALSHA … 3 trunkline:log:{ws} trunkline:purging:{ws}:9f trunkline:workspace:{ws}
--           agent-1 1790000000000-0 200 60 → 1) "0" 2) "1789999999000-0" 3) "" 4) "1789999999000-0"

local log, copy, workspace = KEYS[1], KEYS[2], KEYS[3]
local agent, stays, count = ARGV[1], ARGV[2], tonumber(ARGV[3])
local purges = redis.call('HGET', workspace, 'purges') or '0'
local at, after, before, last = '0-0', '-', ARGV[7] or '', ARGV[8] or ''
if ARGV[5] then
  at, after = ARGV[6], '(' .. ARGV[6]
  -- The copy may have expired, or have this stretch already, as the answer was lost; and what another purge took out
  -- of the log must not come back with it.
  local newest = redis.call('XREVRANGE', copy, '+', '-', 'COUNT', 1)[1]
  if ARGV[5] ~= purges or (newest and newest[1] or '') ~= last then return {''} end
else
  redis.call('DEL', copy)
end

-- Quick for most: only what names the agent anywhere is read, and of that no more than stands before its data. The
-- quotes tell that this is where `data` begins: within a text they would be escaped.
local quoted = '"' .. agent .. '"'
local function is_its_own(id, body)
  if id == stays or not string.find(body, quoted, 1, true) then return false end
  local head = string.match(body, '^(.-),"data":')
  local is_json, event = pcall(cjson.decode, '{' .. (head or '') .. '}')
  if is_json and event.agent_id then return event.agent_id == agent end
  -- As others may write it, who call publish.lua themselves.
  is_json, event = pcall(cjson.decode, '{' .. body)
  if not is_json then return false end
  return event.agent_id == agent or (type(event.data) == 'table' and event.data.agent_id == agent)
end

local function copy_entry(id, field, body)
  local prev = string.match(body, '^"prev":"([%d-]+)"')
  if is_its_own(id, body) then
    if before == '' then before = prev or '' end
    return
  end
  if before ~= '' and prev then body = '"prev":"' .. before .. '"' .. string.sub(body, #prev + 10) end
  before, last = '', id
  redis.call('XADD', copy, id, field, body)
end

-- A few at a time, as nobody knows how large they are before they are read.
local FEW, BYTES = 10, 256 * 1024
local read, bytes, is_end = 0, 0, false
while read < count and bytes < BYTES and not is_end do
  local wanted = math.min(FEW, count - read)
  local entries = redis.call('XRANGE', log, after, '+', 'COUNT', wanted)
  for _, entry in ipairs(entries) do
    at = entry[1]
    bytes = bytes + #entry[2][2]
    copy_entry(at, entry[2][1], entry[2][2])
  end
  read, after, is_end = read + #entries, '(' .. at, #entries < wanted
end
redis.call('EXPIRE', copy, ARGV[4])
if not is_end then return {purges, at, before, last} end

local first = redis.call('XRANGE', log, '-', '+', 'COUNT', 1)[1]
if not first or last == '' then
  redis.call('UNLINK', log, copy)
  return {}
end
-- What the log has let go meanwhile goes here too.
redis.call('XTRIM', copy, 'MINID', '=', first[1])
local lives = redis.call('PTTL', log)
redis.call('UNLINK', log)  -- to free a long one takes long; RENAME would do it here and now
redis.call('RENAME', copy, log)
if lives >= 0 then redis.call('PEXPIRE', log, lives) else redis.call('PERSIST', log) end
redis.call('HINCRBY', workspace, 'purges', 1)
-- A reader may stand at a position that is gone now: up to here that says nothing of a loss.
redis.call('HSET', workspace, 'purged', redis.call('HGET', workspace, 'position') or '0-0')
return {}
