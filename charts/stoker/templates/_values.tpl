{{- /*
What values.yaml says. helm takes away a key that somebody sets to null, and a map whose fields are all commented out is
null: it counts as left out.
*/ -}}
{{- define "stoker.defaults" -}}
global: {imageRegistry: "", imagePullSecrets: []}
image: {repository: ghcr.io/stoker-dev/stoker-operator, tag: "", digest: "", pullPolicy: IfNotPresent}
replicaCount: 1
leaderElection: {enabled: true, leaseDurationSeconds: 7, renewDeadlineSeconds: 5, retryPeriodSeconds: 1}
imagePullSecrets: []
runtimeImage: {repository: ghcr.io/stoker-dev/stoker-runtime, tag: "", digest: "", pullPolicy: ""}
runtimePods:
  imagePullSecrets: []
  env: {}
  caBundle: {configMap: "", key: ca.crt}
assignedUser: auto
cordonedNodes: drain
namespaces: []
allowFileSources: false
clusterDomain: cluster.local
logLevel: info
extraEnv: []
serviceAccount: {create: true, name: "", annotations: {}}
rbac: {create: true, aggregate: true}
crds: {install: true}
monitoring:
  podMonitor: {enabled: false, labels: {}, interval: 15s}
  serviceMonitor: {enabled: false, labels: {}, interval: 15s}
  alerts: {enabled: false, labels: {}}
  dashboard: {enabled: false, labels: {grafana_dashboard: "1"}}
networkPolicy: {enabled: false, namespaces: [], clients: []}
resources:
  requests: {cpu: 50m, memory: 96Mi}
  limits: {memory: 512Mi}
podAnnotations: {}
podLabels: {}
nodeSelector: {}
tolerations: []
affinity: {}
topologySpreadConstraints: []
priorityClassName: ""
test:
  modelSource: hf://HuggingFaceTB/SmolLM2-135M-Instruct
  timeoutSeconds: 280
  resources:
    requests: {cpu: 100m, memory: 1Gi}
    limits: {memory: 2Gi}
{{- end -}}

{{- /*
Put what is missing in .values there, from .defaults. Not sprig's merge: it takes false for missing. In helm null empties
a map that has something by default; that stays so for those that are free to fill.
*/ -}}
{{- define "stoker.fill" -}}
{{- range $key, $default := .defaults -}}
{{- $value := index $.values $key -}}
{{- $isFree := has $key (list "labels" "resources") -}}
{{- if kindIs "invalid" $value -}}
{{- $_ := set $.values $key (ternary dict $default $isFree) -}}
{{- else if and (kindIs "map" $default) (not $isFree) -}}
{{- include "stoker.fill" (dict "values" $value "defaults" $default) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- /* What every template begins with, whichever is rendered first: whole values that can work from here on. */ -}}
{{- define "stoker.values" -}}
{{- include "stoker.fill" (dict "values" .Values "defaults" (include "stoker.defaults" . | fromYaml)) -}}
{{- with include "stoker.problems" . | trim -}}
{{- fail (printf "values that cannot work:\n%s" .) -}}
{{- end -}}
{{- end -}}
