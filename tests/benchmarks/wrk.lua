-- wrk's script: requests with checks of many clients. Arguments: number of clients, "uniform", "zipf" or
-- "repeated" (each client eight times in a row),
-- checks per request, seed, the text of a check before and after the client's id, and the method.
-- In a GET request, the text is the last line of the head. In a POST request, it is in the body.
-- Ids are those of client_ids.py. All have one length, so the head of a request is built once.

local clients, distribution, size, before, after, head
local turn = 0

function init(args)
  clients, distribution, size = tonumber(args[1]), args[2], tonumber(args[3])
  before, after = args[5], args[6]
  math.randomseed(tonumber(args[4]))
  head = args[7] .. " " .. wrk.path .. " HTTP/1.1\r\nHost: " .. wrk.headers["Host"] .. "\r\n"
  local token = wrk.headers["Authorization"]
  if token then head = head .. "Authorization: " .. token .. "\r\n" end
  if args[7] == "GET" then
    after = after .. "\r\n\r\n"
    return
  end
  local length = size * (#before + 9 + #after)
  if size > 1 then length = length + size + 1 end
  head = head .. "Content-Type: application/json\r\nContent-Length: " .. length .. "\r\n\r\n"
end

local function check()
  local number
  if distribution == "zipf" then
    number = math.floor((clients + 1) ^ math.random()) - 1
  elseif distribution == "repeated" then
    number = math.floor(turn / 8) % clients
    turn = turn + 1
  else
    number = math.floor(math.random() * clients)
  end
  return before .. string.format("c%08x", number * 625341585 % 4294967296) .. after
end

function request()
  if size == 1 then return head .. check() end
  local checks = {}
  for i = 1, size do checks[i] = check() end
  return head .. "[" .. table.concat(checks, ",") .. "]"
end

function done(summary, latency)
  local errors = summary.errors
  io.write(string.format(
    '\n{"requests": %d, "seconds": %.6f, "p50_ms": %.4f, "p99_ms": %.4f, "p999_ms": %.4f, "errors": %d}\n',
    summary.requests, summary.duration / 1e6, latency:percentile(50) / 1e3, latency:percentile(99) / 1e3,
    latency:percentile(99.9) / 1e3,
    errors.connect + errors.read + errors.write + errors.status + errors.timeout))
end
