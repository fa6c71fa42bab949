-- Health of a ModelDeployment (stoker.dev). Conditions count only when they speak of the current generation.
local health = {status = "Progressing", message = "waiting for the operator to see this generation"}

local generation = obj.metadata.generation
local conditions = {}
if obj.status ~= nil and obj.status.conditions ~= nil then
  for _, condition in ipairs(obj.status.conditions) do
    if condition.observedGeneration == generation then
      conditions[condition.type] = condition
    end
  end
end

local ready, stalled = conditions.Ready, conditions.Stalled
if ready == nil then
  return health
end
health.message = ready.message
if stalled ~= nil and stalled.status == "True" then
  health.status = "Degraded"
  health.message = stalled.message
elseif ready.reason == "Suspended" or ready.reason == "Paused" then
  health.status = "Suspended"
elseif ready.status == "True" then
  health.status = "Healthy"
end
return health
