{{- /*
What is wrong with the values, a line for each: the field, its value and what to write. The schema checks types and
names; of what a text must look like it could only show the regular expression.
*/ -}}
{{- define "stoker.problems" -}}
{{- include "stoker.globalProblems" . -}}
{{- include "stoker.imageProblems" (dict "name" "image" "image" .Values.image) -}}
{{- include "stoker.imageProblems" (dict "name" "runtimeImage" "image" .Values.runtimeImage) -}}
{{- include "stoker.nameProblems" . -}}
{{- include "stoker.runtimePodsProblems" . -}}
{{- include "stoker.ownKeyProblems" . -}}
{{- include "stoker.leaderElectionProblems" . -}}
{{- $domain := .Values.clusterDomain -}}
{{- $rule := "write a DNS domain, such as cluster.local" -}}
{{- include "stoker.textProblem" (dict "name" "clusterDomain" "value" $domain "pattern" (include "stoker.subdomain" .) "fixed" (lower $domain | trimAll ".") "rule" $rule) -}}
{{- range $kind := list "podMonitor" "serviceMonitor" -}}
{{- $interval := get (get $.Values.monitoring $kind) "interval" -}}
{{- $name := printf "monitoring.%s.interval" $kind -}}
{{- include "stoker.textProblem" (dict "name" $name "value" $interval "pattern" "^[0-9]+(ms|s|m)$" "fixed" (printf "%ss" $interval) "rule" "write a number with its unit, such as 15s or 1m") -}}
{{- end -}}
{{- $sources := "^(hf://[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9._/-]+[.]gguf)?(@[A-Za-z0-9][A-Za-z0-9._/-]*)?|pvc://[a-z0-9]([a-z0-9.-]*[a-z0-9])?(/[^/ ]+)*/?|oci://[a-z0-9][A-Za-z0-9._:/@-]*)$" -}}
{{- $source := .Values.test.modelSource -}}
{{- $rule = "use hf://OWNER/NAME, oci://IMAGE or pvc://CLAIM/PATH, such as oci://registry.example/smollm2:1" -}}
{{- include "stoker.textProblem" (dict "name" "test.modelSource" "value" $source "pattern" $sources "fixed" (printf "hf://%s" $source) "rule" $rule) -}}
{{- if and .Values.serviceAccount.annotations (not .Values.serviceAccount.create) -}}
{{- printf "serviceAccount.annotations are for the account that the chart makes, and serviceAccount.create is false: remove them, and annotate your account yourself\n" -}}
{{- end -}}
{{- end -}}

{{- define "stoker.leaderElectionProblems" -}}
{{- $election := .Values.leaderElection -}}
{{- $duration := float64 $election.leaseDurationSeconds -}}
{{- $deadline := float64 $election.renewDeadlineSeconds -}}
{{- if and (gt (int .Values.replicaCount) 1) (not $election.enabled) -}}
{{- printf "replicaCount is %d and leaderElection.enabled is false: operators that do not agree on one undo each other's work: write true, or replicaCount: 1\n" (int .Values.replicaCount) -}}
{{- end -}}
{{- if gt $deadline (subf $duration 1) -}}
{{- printf "leaderElection.renewDeadlineSeconds is %v: write at least a second less than leaderElection.leaseDurationSeconds, which is %v\n" $deadline $duration -}}
{{- end -}}
{{- if gt (mulf $election.retryPeriodSeconds 3) $deadline -}}
{{- printf "leaderElection.retryPeriodSeconds is %v: write at most a third of leaderElection.renewDeadlineSeconds, which is %v\n" $election.retryPeriodSeconds $deadline -}}
{{- end -}}
{{- end -}}

{{- /* Nothing where .value has the .pattern; else what to write: .fixed where that has it, or the .rule. */ -}}
{{- define "stoker.textProblem" -}}
{{- if not (regexMatch .pattern .value) -}}
{{- $fixed := default "" .fixed -}}
{{- if regexMatch .pattern $fixed -}}
{{- printf "%s is %q: write %q\n" .name .value $fixed -}}
{{- else -}}
{{- printf "%s is %q: %s\n" .name .value .rule -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "stoker.label" -}}
^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$
{{- end -}}

{{- define "stoker.subdomain" -}}
^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$
{{- end -}}

{{- /* A host that no container engine takes for a folder of docker.io, and folders. */ -}}
{{- define "stoker.host" -}}
(\[[0-9a-fA-F:]+\](:[0-9]+)?|localhost(:[0-9]+)?|[a-zA-Z0-9-]+(\.[a-zA-Z0-9-]+)+(:[0-9]+)?|[a-zA-Z0-9-]+:[0-9]+)
{{- end -}}

{{- define "stoker.folder" -}}
[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*
{{- end -}}

{{- /* A name without what is often put around it: a scheme, slashes too many, capitals. */ -}}
{{- define "stoker.plainName" -}}
{{- regexReplaceAll "//+" (regexReplaceAll "^[a-zA-Z]+://" . "") "/" | trimAll "/" | lower -}}
{{- end -}}

{{- define "stoker.globalProblems" -}}
{{- with .Values.global.imageRegistry -}}
{{- $pattern := printf "^%s(/%s)*$" (include "stoker.host" $) (include "stoker.folder" $) -}}
{{- $rule := "write a host, which has a dot or a port, and perhaps folders in lower case, such as registry.example:5000/mirror" -}}
{{- include "stoker.textProblem" (dict "name" "global.imageRegistry" "value" . "pattern" $pattern "fixed" (include "stoker.plainName" .) "rule" $rule) -}}
{{- end -}}
{{- range $index, $secret := .Values.global.imagePullSecrets -}}
{{- if and (kindIs "map" $secret) (not (get $secret "name")) -}}
{{- printf "global.imagePullSecrets[%d] has no name: write the Secret's name, or {name: ...}\n" $index -}}
{{- end -}}
{{- end -}}
{{- /* Other charts may have keys of their own there; what differs from ours by a letter or two is a slip. */ -}}
{{- if .Chart.IsRoot -}}
{{- range $known := list "imageRegistry" "imagePullSecrets" -}}
{{- $near := list -}}
{{- range $at := until (int (sub (len $known) 1)) -}}
{{- $near = append $near (printf "%s.{0,3}%s" (substr 0 $at $known) (substr (int (add $at 2)) (len $known) $known)) -}}
{{- end -}}
{{- range $key, $_ := $.Values.global -}}
{{- if and (ne $key $known) (regexMatch (printf "(?i)^(%s)$" (join "|" $near)) (regexReplaceAll "[-_]" $key "")) -}}
{{- printf "global.%s is not known: write global.%s\n" $key $known -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- /* Of one image: .name of the value and the .image. */ -}}
{{- define "stoker.imageProblems" -}}
{{- $repository := .image.repository -}}
{{- $name := printf "%s.repository" .name -}}
{{- if contains "@" $repository -}}
{{- printf "%s is %q: write %q, and what follows the @ into %s.digest\n" $name $repository (regexReplaceAll "@.*$" $repository "") .name -}}
{{- else if regexMatch ":[^/:]*$" (regexReplaceAll "^[a-zA-Z]+://" $repository "") -}}
{{- printf "%s is %q: write %q, and the tag into %s.tag\n" $name $repository (regexReplaceAll ":[^/:]*$" $repository "") .name -}}
{{- else -}}
{{- $folder := include "stoker.folder" . -}}
{{- $pattern := printf "^(%s/)?%s(/%s)*$" (include "stoker.host" .) $folder $folder -}}
{{- $rule := "write an image's name without its tag, such as registry.example/stoker-dev/stoker-operator" -}}
{{- include "stoker.textProblem" (dict "name" $name "value" $repository "pattern" $pattern "fixed" (include "stoker.plainName" $repository) "rule" $rule) -}}
{{- end -}}
{{- with .image.tag -}}
{{- $rule := printf "a tag has up to 128 letters, digits, _, . and -, such as 0.1.0; a digest is for %s.digest" $.name -}}
{{- include "stoker.textProblem" (dict "name" (printf "%s.tag" $.name) "value" . "pattern" "^[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}$" "fixed" (trimPrefix ":" .) "rule" $rule) -}}
{{- end -}}
{{- with .image.digest -}}
{{- $fixed := regexReplaceAll "^.*@" . "" | lower | trimPrefix "sha256:" | printf "sha256:%s" -}}
{{- include "stoker.textProblem" (dict "name" (printf "%s.digest" $.name) "value" . "pattern" "^sha256:[0-9a-f]{64}$" "fixed" $fixed "rule" "write sha256: and 64 hexadecimal digits, as `docker images --digests` prints them") -}}
{{- end -}}
{{- end -}}

{{- define "stoker.nameProblems" -}}
{{- $rule := "a namespace's name has up to 63 lower-case letters, digits and -, and begins and ends with none of -" -}}
{{- range $list, $namespaces := dict "namespaces" .Values.namespaces "networkPolicy.namespaces" .Values.networkPolicy.namespaces -}}
{{- range $index, $namespace := $namespaces -}}
{{- include "stoker.textProblem" (dict "name" (printf "%s[%d]" $list $index) "value" $namespace "pattern" (include "stoker.label" $) "rule" $rule) -}}
{{- end -}}
{{- end -}}
{{- $names := dict "serviceAccount.name" .Values.serviceAccount.name "priorityClassName" .Values.priorityClassName "runtimePods.caBundle.configMap" .Values.runtimePods.caBundle.configMap -}}
{{- range $list, $secrets := dict "imagePullSecrets" .Values.imagePullSecrets "runtimePods.imagePullSecrets" .Values.runtimePods.imagePullSecrets "global.imagePullSecrets" .Values.global.imagePullSecrets -}}
{{- range $index, $secret := $secrets -}}
{{- if kindIs "map" $secret -}}
{{- $_ := set $names (printf "%s[%d].name" $list $index) (default "" (get $secret "name")) -}}
{{- else -}}
{{- $_ := set $names (printf "%s[%d]" $list $index) $secret -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- $rule = "the name of an object has lower-case letters, digits, - and ., and begins and ends with a letter or digit" -}}
{{- range $name, $value := $names -}}
{{- if $value -}}
{{- include "stoker.textProblem" (dict "name" $name "value" $value "pattern" (include "stoker.subdomain" $) "rule" $rule) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- /* The operator says the same of the variables: stoker_operator/config.py. */ -}}
{{- define "stoker.runtimePodsProblems" -}}
{{- $reserved := dict
  "HF_HOME" "the operator sets it to where downloads are kept: use spec.model.cache of a ModelDeployment"
  "HF_TOKEN" "it would stand in every pod as plain text: use spec.model.secretName of a ModelDeployment"
  "AWS_SECRET_ACCESS_KEY" "it would stand in every pod as plain text: use spec.model.secretName of a ModelDeployment" -}}
{{- range $name, $_ := .Values.runtimePods.env -}}
{{- if hasKey $reserved $name -}}
{{- printf "runtimePods.env must not set %s: %s\n" $name (get $reserved $name) -}}
{{- else if not (regexMatch "^[A-Za-z_][A-Za-z0-9_.-]*$" $name) -}}
{{- printf "runtimePods.env has %q, which is no name of a variable: it has letters, digits, _, . and -, and begins with a letter or _\n" $name -}}
{{- end -}}
{{- end -}}
{{- $bundle := .Values.runtimePods.caBundle -}}
{{- $key := (include "stoker.defaults" . | fromYaml).runtimePods.caBundle.key -}}
{{- if and $bundle.configMap (hasKey .Values.runtimePods.env "SSL_CERT_FILE") -}}
{{- printf "runtimePods.env sets SSL_CERT_FILE, and so does runtimePods.caBundle: remove one\n" -}}
{{- end -}}
{{- if and (not $bundle.configMap) (ne $bundle.key $key) -}}
{{- printf "runtimePods.caBundle.key is %q, and runtimePods.caBundle.configMap is empty: name the ConfigMap that has this key, or remove the key\n" $bundle.key -}}
{{- end -}}
{{- if or (not (regexMatch "^[-._a-zA-Z0-9]{1,253}$" $bundle.key)) (has $bundle.key (list "." "..")) -}}
{{- printf "runtimePods.caBundle.key is %q: write a key of the ConfigMap, letters, digits, -, _ and ., such as ca.crt\n" $bundle.key -}}
{{- end -}}
{{- end -}}

{{- /* What would stand twice in a manifest. */ -}}
{{- define "stoker.ownKeyProblems" -}}
{{- $own := include "stoker.labels" . | fromYaml -}}
{{- $labels := dict "podLabels" .Values.podLabels -}}
{{- range $kind, $values := .Values.monitoring -}}
{{- $_ := set $labels (printf "monitoring.%s.labels" $kind) $values.labels -}}
{{- end -}}
{{- range $name, $values := $labels -}}
{{- range $key, $_ := $values -}}
{{- if hasKey $own $key -}}
{{- printf "%s sets %s, which the chart sets itself: remove it\n" $name $key -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- range .Values.extraEnv -}}
{{- if hasPrefix "STOKER_" .name -}}
{{- printf "extraEnv sets %s, which the chart sets by its other values: remove it, and see values.yaml\n" .name -}}
{{- end -}}
{{- end -}}
{{- end -}}
