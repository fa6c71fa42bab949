{{- define "stoker.fullname" -}}
{{- if contains "stoker" .Release.Name -}}
{{- .Release.Name | trunc 50 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-stoker" (.Release.Name | trunc 43 | trimSuffix "-") -}}
{{- end -}}
{{- end -}}

{{- define "stoker.selector" -}}
app.kubernetes.io/name: stoker-operator
app.kubernetes.io/instance: {{ .Release.Name | quote }}
{{- end -}}

{{- define "stoker.labels" -}}
{{ include "stoker.selector" . }}
app.kubernetes.io/part-of: stoker
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service | quote }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | quote }}
{{- end -}}

{{- define "stoker.serviceAccount" -}}
{{- default (ternary (include "stoker.fullname" .) "default" .Values.serviceAccount.create) .Values.serviceAccount.name -}}
{{- end -}}

{{- /* The name of an image: of the registry that global.imageRegistry puts in the place of its own, by digest or tag. */ -}}
{{- define "stoker.imageReference" -}}
{{- $registry := .context.Values.global.imageRegistry -}}
{{- $repository := .image.repository -}}
{{- if $registry -}}
{{- /* The first part of a name is a registry when it could be a host, as container engines have it. */ -}}
{{- $path := regexReplaceAll "^([^/]*[.:][^/]*|localhost)/" $repository "" -}}
{{- $repository = printf "%s/%s" $registry $path -}}
{{- end -}}
{{- if .image.digest -}}
{{- printf "%s@%s" $repository .image.digest -}}
{{- else -}}
{{- printf "%s:%s" $repository (default .context.Chart.AppVersion .image.tag) -}}
{{- end -}}
{{- end -}}

{{- define "stoker.image" -}}
{{- include "stoker.imageReference" (dict "image" .Values.image "context" .) -}}
{{- end -}}

{{- define "stoker.runtimeImage" -}}
{{- include "stoker.imageReference" (dict "image" .Values.runtimeImage "context" .) -}}
{{- end -}}

{{- /* The names of pull secrets, with commas: .own and the global ones, each once. */ -}}
{{- define "stoker.pullSecretNames" -}}
{{- $names := list -}}
{{- range concat .own .context.Values.global.imagePullSecrets -}}
{{- if kindIs "map" . -}}
{{- $names = append $names .name -}}
{{- else -}}
{{- $names = append $names . -}}
{{- end -}}
{{- end -}}
{{- $names | uniq | join "," -}}
{{- end -}}

{{- /* Of a pod that runs the operator's image. */ -}}
{{- define "stoker.imagePullSecrets" -}}
{{- with include "stoker.pullSecretNames" (dict "own" .Values.imagePullSecrets "context" .) -}}
imagePullSecrets:
{{- range splitList "," . }}
  - name: {{ . | quote }}
{{- end }}
{{- end -}}
{{- end -}}

{{- define "stoker.runtimePullSecrets" -}}
{{- include "stoker.pullSecretNames" (dict "own" .Values.runtimePods.imagePullSecrets "context" .) -}}
{{- end -}}

{{- /* The ConfigMap and key of the authorities that downloads trust, empty where there is none. */ -}}
{{- define "stoker.caBundle" -}}
{{- with .Values.runtimePods.caBundle -}}
{{- if .configMap -}}
{{- printf "%s/%s" .configMap .key -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- /* Whether the platform gives pods their user and groups: "true" or "false". */ -}}
{{- define "stoker.assignedUser" -}}
{{- if eq (toString .Values.assignedUser) "auto" -}}
{{- .Capabilities.APIVersions.Has "security.openshift.io/v1" -}}
{{- else -}}
{{- .Values.assignedUser -}}
{{- end -}}
{{- end -}}

{{- define "stoker.podSecurityContext" -}}
runAsNonRoot: true
{{- if ne (include "stoker.assignedUser" .) "true" }}
runAsUser: 65532
runAsGroup: 65532
{{- end }}
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{- define "stoker.containerSecurityContext" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end -}}

{{- /* Of `helm test`: the name of everything it makes, and where its model is served. */ -}}
{{- define "stoker.testName" -}}
{{- printf "%s-test" (include "stoker.fullname" . | trunc 41 | trimSuffix "-") -}}
{{- end -}}

{{- /* Not the operator's: its Deployment and monitors select those. */ -}}
{{- define "stoker.testLabels" -}}
app.kubernetes.io/name: stoker-test
app.kubernetes.io/instance: {{ .Release.Name | quote }}
app.kubernetes.io/part-of: stoker
app.kubernetes.io/managed-by: {{ .Release.Service | quote }}
{{- end -}}

{{- define "stoker.testNamespace" -}}
{{- first (concat .Values.namespaces (list .Release.Namespace)) -}}
{{- end -}}

{{- /* What the operator does in a namespace that it watches; it never writes a ModelDeployment's spec. */ -}}
{{- define "stoker.namespacedRules" -}}
- apiGroups: [stoker.dev]
  resources: [modeldeployments]
  verbs: [get, list, watch]
- apiGroups: [stoker.dev]
  resources: [modeldeployments/status]
  verbs: [patch]
# Where OwnerReferencesPermissionEnforcement is on, owner references that block deletion need this.
- apiGroups: [stoker.dev]
  resources: [modeldeployments/finalizers]
  verbs: [update]
- apiGroups: [""]
  resources: [pods]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [""]
  resources: [services]
  verbs: [get, list, watch, create, patch]
- apiGroups: [policy]
  resources: [poddisruptionbudgets]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [apps]
  resources: [controllerrevisions]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [events.k8s.io]
  resources: [events]
  verbs: [create, get, list, patch]
{{- end -}}
