-- Who may ask, and for what. A client shows a certificate that `clients.crt` vouches for, or a line of `tokens`; health
-- is open to all. Of the models only the ensembles are there: members take token ids and trust their caller.

local TOKENS = "/etc/preference/tokens"
local ENSEMBLES = { preference_ensemble = true, preference_ensemble_symmetric = true }
local INVALID, NOT_FOUND, UNIMPLEMENTED, UNAUTHENTICATED = 3, 5, 12, 16
local HTTP_STATUS = { [NOT_FOUND] = "404", [UNAUTHENTICATED] = "401" }
local SERVICE = "/inference.GRPCInferenceService/"
local OPEN_TO_ALL = {
  ["/v2/health/live"] = true,
  ["/v2/health/ready"] = true,
  [SERVICE .. "ServerLive"] = true,
  [SERVICE .. "ServerReady"] = true,
}
-- The methods for known clients, and whether their requests name a model.
local METHODS = { ModelInfer = true, ModelReady = true, ModelMetadata = true, ModelConfig = true, ServerMetadata = false }
-- Numbers of fields in Triton's protocol: of requests (in all of them the model comes first), and of an input.
local MODEL, PARAMETERS, INPUTS, OUTPUTS, CONTENTS = 1, 4, 5, 6, 7
local NAME, DATATYPE, SHAPE = 1, 2, 3
local MAX_ELEMENTS = 65536

local tokens = {}
for line in assert(io.open(TOKENS), "cannot read " .. TOKENS):lines() do
  local token = line:match("^%s*(.-)%s*$")
  if token ~= "" then
    tokens["Bearer " .. token] = true
  end
end

local function refuse(handle, grpc, status, message)
  if grpc then
    handle:respond({
      [":status"] = "200",
      ["content-type"] = "application/grpc",
      ["grpc-status"] = tostring(status),
      ["grpc-message"] = message,
    })
  else
    handle:respond(
      { [":status"] = HTTP_STATUS[status], ["content-type"] = "application/json" },
      '{"error":"' .. message .. '"}'
    )
  end
end

local function known(handle)
  local tls = handle:streamInfo():downstreamSslConnection()
  if tls ~= nil and tls:peerCertificatePresented() and tls:peerCertificateValidated() then
    return true
  end
  return tokens[handle:headers():get("authorization") or ""] == true
end

-- A number of protobuf's wire format at `at`, and where it ends; nil beyond the data or above 2^35.
local function varint(data, at)
  local value, scale = 0, 1
  for position = at, at + 4 do
    local byte = data:byte(position)
    if byte == nil then
      return nil
    end
    value = value + (byte % 128) * scale
    if byte < 128 then
      return value, position + 1
    end
    scale = scale * 128
  end
  return nil
end

-- Calls `visit(number, first, last)` for each field of the message that is data[first..last]; false unless all of it
-- consists of fields with a length, the only ones that these requests have.
local function each_field(data, first, last, visit)
  local at = first
  while at <= last do
    local key, size
    key, at = varint(data, at)
    if key == nil or key % 8 ~= 2 then
      return false
    end
    size, at = varint(data, at)
    if size == nil or at + size - 1 > last then
      return false
    end
    visit((key - 2) / 8, at, at + size - 1)
    at = at + size
  end
  return true
end

-- The number of elements that a shape, in protobuf's packed form, gives; nil for anything odd.
local function elements_of(data, first, last)
  local elements, at = 1, first
  while at <= last do
    local size
    size, at = varint(data, at)
    if size == nil or at > last + 1 then
      return nil
    end
    elements = elements * size
    if elements > MAX_ELEMENTS then
      return nil
    end
  end
  return elements
end

-- Whether data[first..last] is `elements` texts, each after its length in four bytes.
local function holds_texts(data, first, last, elements)
  local at = first
  for _ = 1, elements do
    if at + 3 > last then
      return false
    end
    local a, b, c, d = data:byte(at, at + 3)
    at = at + 4 + a + 256 * b + 65536 * c + 16777216 * d
  end
  return at == last + 1
end

-- Why Triton may not see the tensors of a request, or nil.
local function fault_of(inputs, contents)
  if #inputs ~= #contents then
    return "Every input has to come in raw_input_contents."
  end
  for index, input in ipairs(inputs) do
    local data, first, last = unpack(contents[index])
    local fits
    if input.elements == nil then
      fits = false
    elseif input.datatype == "BYTES" then
      fits = holds_texts(data, first, last, input.elements)
    elseif input.datatype == "FP32" then
      fits = last - first + 1 == 4 * input.elements
    end
    if not fits then
      return "The shape of an input does not fit its data."
    end
  end
  return nil
end

-- Whether a gRPC body is one message, not compressed.
local function is_one_message(body)
  if #body < 5 or body:byte(1) ~= 0 then
    return false
  end
  local a, b, c, d = body:byte(2, 5)
  return ((a * 256 + b) * 256 + c) * 256 + d == #body - 5
end

-- The model that a request asks for, and what is wrong with the request.
local function model_and_fault(method, body)
  if not is_one_message(body) then
    return nil, "The message is compressed, or not a single one."
  end
  local name, inputs, contents, fault = "", {}, {}, nil
  local whole = each_field(body, 6, #body, function(number, first, last)
    if number == MODEL then
      name = body:sub(first, last)
    elseif method ~= "ModelInfer" then
      return
    elseif number == PARAMETERS then
      fault = "Parameters of a request are not accepted."
    elseif number == INPUTS then
      local input = {}
      local read = each_field(body, first, last, function(part, from, to)
        if part == DATATYPE then
          input.datatype = body:sub(from, to)
        elseif part == SHAPE and input.elements == nil then
          input.elements = elements_of(body, from, to)
        elseif part ~= NAME then
          fault = "Inputs have a name, a datatype and a shape only."
        end
      end)
      if not read then
        fault = "The message is not a ModelInferRequest."
      end
      inputs[#inputs + 1] = input
    elseif number == OUTPUTS then
      local read = each_field(body, first, last, function(part)
        if part ~= NAME then
          fault = "Outputs have a name only."
        end
      end)
      if not read then
        fault = "The message is not a ModelInferRequest."
      end
    elseif number == CONTENTS then
      contents[#contents + 1] = { body, first, last }
    end
  end)
  if not whole then
    return nil, "The message is not one of this method."
  elseif method == "ModelInfer" then
    fault = fault or fault_of(inputs, contents)
  end
  return name, fault
end

function envoy_on_request(handle)
  local path = handle:headers():get(":path"):match("^[^?]*")
  if OPEN_TO_ALL[path] then
    return
  end
  local grpc = path:sub(1, #SERVICE) == SERVICE
  if not known(handle) then
    return refuse(handle, grpc, UNAUTHENTICATED, "Show a client certificate, or a token as 'authorization: Bearer ...'.")
  end
  local name, fault
  if grpc then
    local method = path:sub(#SERVICE + 1)
    if METHODS[method] == nil then
      return refuse(handle, grpc, UNIMPLEMENTED, "There is no such method for clients.")
    elseif not METHODS[method] then
      return
    end
    local body = handle:body(true)
    name, fault = model_and_fault(method, body:getBytes(0, body:length()))
  else
    name = path:match("^/v2/models/([^/]+)")
    if name == nil then
      return
    end
  end
  if name ~= nil and not ENSEMBLES[name] then
    return refuse(handle, grpc, NOT_FOUND, "There is no such model for clients.")
  elseif fault then
    return refuse(handle, grpc, INVALID, fault)
  end
end
