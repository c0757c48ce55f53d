{{- define "stoplog.name" -}}
{{- if contains .Chart.Name .Release.Name }}{{ .Release.Name | trunc 40 | trimSuffix "-" }}{{ else }}{{ printf "%s-stoplog" .Release.Name | trunc 40 | trimSuffix "-" }}{{ end }}
{{- end }}

{{- /* Labels that select the pods of a component. Argument: dict "root" "component" and, for workers, "lane". */}}
{{- define "stoplog.selector" -}}
app.kubernetes.io/name: stoplog
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- with .lane }}
stoplog/lane: {{ . | quote }}
{{- end }}
{{- end }}

{{- define "stoplog.labels" -}}
{{ include "stoplog.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version }}
{{- end }}

{{- /* Argument: dict "root" "image", the name of the image's values. */}}
{{- define "stoplog.image" -}}
{{- $image := get .root.Values.image .image }}
image: {{ printf "%s:%s" $image.repository ($image.tag | default .root.Chart.AppVersion) | quote }}
imagePullPolicy: {{ .root.Values.image.pullPolicy }}
{{- end }}

{{- define "stoplog.pod-security" -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
fsGroup: 10001
fsGroupChangePolicy: OnRootMismatch
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "stoplog.container-security" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}

{{- /* The variables with which a role connects to Kafka. Argument: dict "root" "role". */}}
{{- define "stoplog.kafka-env" -}}
{{- $kafka := .root.Values.kafka }}
{{- $auth := $kafka.authentication }}
{{- $sasl := has $auth (list "scram-sha-512" "scram-sha-256" "plain") }}
{{- $tls := or $kafka.tls (eq $auth "tls") }}
- {name: STOPLOG_KAFKA, value: {{ $kafka.bootstrap | quote }}}
- {name: STOPLOG_TOPICS, value: /etc/stoplog/topics/topics.yaml}
{{- if or $sasl $tls }}
- {name: STOPLOG_KAFKA_SECURITY_PROTOCOL, value: {{ if and $sasl $tls }}SASL_SSL{{ else if $sasl }}SASL_PLAINTEXT{{ else }}SSL{{ end }}}
{{- end }}
{{- if and $tls $kafka.ca.secret }}
- {name: STOPLOG_KAFKA_CA_FILE, value: {{ printf "/etc/stoplog/kafka-ca/%s" $kafka.ca.key | quote }}}
{{- end }}
{{- if $sasl }}
- {name: STOPLOG_KAFKA_SASL_MECHANISM, value: {{ $auth | upper }}}
- {name: STOPLOG_KAFKA_USERNAME, value: {{ get $kafka.users .role | quote }}}
- {name: STOPLOG_KAFKA_PASSWORD_FILE, value: {{ printf "/etc/stoplog/kafka-%s/password" .role }}}
{{- else if eq $auth "tls" }}
- {name: STOPLOG_KAFKA_CERT_FILE, value: {{ printf "/etc/stoplog/kafka-%s/user.crt" .role }}}
- {name: STOPLOG_KAFKA_KEY_FILE, value: {{ printf "/etc/stoplog/kafka-%s/user.key" .role }}}
{{- end }}
{{- end }}

{{- define "stoplog.kafka-mounts" -}}
- {name: topics, mountPath: /etc/stoplog/topics, readOnly: true}
- {name: tmp, mountPath: /tmp}
{{- if and .root.Values.kafka.ca.secret (or .root.Values.kafka.tls (eq .root.Values.kafka.authentication "tls")) }}
- {name: kafka-ca, mountPath: /etc/stoplog/kafka-ca, readOnly: true}
{{- end }}
{{- if ne .root.Values.kafka.authentication "none" }}
- {name: {{ printf "kafka-%s" .role }}, mountPath: {{ printf "/etc/stoplog/kafka-%s" .role }}, readOnly: true}
{{- end }}
{{- end }}

{{- /* The volumes of those mounts. Argument: dict "root" "roles". */}}
{{- define "stoplog.kafka-volumes" -}}
{{- $root := .root }}
- name: topics
  configMap: {name: {{ include "stoplog.name" .root }}-topics}
- name: tmp
  emptyDir: {sizeLimit: 256Mi}
{{- if and .root.Values.kafka.ca.secret (or .root.Values.kafka.tls (eq .root.Values.kafka.authentication "tls")) }}
- name: kafka-ca
  secret:
    secretName: {{ .root.Values.kafka.ca.secret }}
    defaultMode: 0440
    items: [{key: {{ .root.Values.kafka.ca.key }}, path: {{ .root.Values.kafka.ca.key }}}]
{{- end }}
{{- if ne .root.Values.kafka.authentication "none" }}
{{- range .roles }}
- name: kafka-{{ . }}
  secret: {secretName: {{ get $root.Values.kafka.users . }}, defaultMode: 0440}
{{- end }}
{{- end }}
{{- end }}

{{- define "stoplog.settings-env" -}}
{{- range $name, $value := . }}
- {name: {{ $name }}, value: {{ $value | toString | quote }}}
{{- end }}
{{- end }}

{{- /* The content of topics.yaml, with the numbers of the values. */}}
{{- define "stoplog.topics" -}}
{{- $file := .Files.Get "files/topics.yaml" | fromYaml }}
{{- range $name, $topic := $file.topics }}
{{- if has $name $file.copartitioned }}{{ $_ := set $topic "partitions" $.Values.topics.partitions }}{{ end }}
{{- if eq $name "replies" }}{{ $_ := set $topic "partitions" $.Values.topics.replyPartitions }}{{ end }}
{{- end }}
{{- dict "defaults" (dict "replication" .Values.topics.replication "min_insync" .Values.topics.minInsync) "topics" $file.topics | toYaml }}
{{- end }}

{{- /* The number of partitions that docs/operations.md recommends. */}}
{{- define "stoplog.recommended-partitions" -}}
{{- $wanted := divf (int .Values.topics.expectedChecksPerSecond) 10000 | ceil | int }}
{{- range .Values.lanes }}{{ $wanted = max $wanted (int .replicas) }}{{ end }}
{{- $power := 1 }}
{{- range until 7 }}{{ if lt (int $power) (int $wanted) }}{{ $power = mul $power 2 }}{{ end }}{{ end }}
{{- $power }}
{{- end }}

{{- /* The prefix of a lane's groups and changelogs: stoplog for the default lane a, else stoplog-<lane>. */}}
{{- define "stoplog.app-id" -}}
{{- if eq . "a" }}stoplog{{ else }}stoplog-{{ . }}{{ end }}
{{- end }}
