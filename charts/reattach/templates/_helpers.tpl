{{/* The chart's name, in labels. */}}
{{- define "reattach.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{/* Prefix of all names. At most 40 characters, so that every derived name is a DNS label. */}}
{{- define "reattach.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- $name := include "reattach.name" . -}}
{{- if contains $name .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "reattach.operatorName" -}}
{{ include "reattach.fullname" . }}-operator
{{- end -}}

{{- define "reattach.serverName" -}}
{{ include "reattach.fullname" . }}-server
{{- end -}}

{{/* Prefix of the names of cluster-scoped objects. It includes the namespace, because one cluster may have several releases. */}}
{{- define "reattach.clusterName" -}}
{{ .Release.Namespace }}-{{ include "reattach.fullname" . }}
{{- end -}}

{{/* Labels of every object. */}}
{{- define "reattach.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/part-of: reattach
{{ include "reattach.selectorLabels" . }}
{{- end -}}

{{/* Labels for selectors, which never change. The caller adds the component label. */}}
{{- define "reattach.selectorLabels" -}}
app.kubernetes.io/name: {{ include "reattach.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "reattach.operatorServiceAccountName" -}}
{{- if .Values.operator.serviceAccount.create -}}
{{- default (include "reattach.operatorName" .) .Values.operator.serviceAccount.name -}}
{{- else -}}
{{- required "operator.serviceAccount.name must name an existing ServiceAccount when operator.serviceAccount.create is false" .Values.operator.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{- define "reattach.serverServiceAccountName" -}}
{{- if .Values.server.serviceAccount.create -}}
{{- default (include "reattach.serverName" .) .Values.server.serviceAccount.name -}}
{{- else -}}
{{- required "server.serviceAccount.name must name an existing ServiceAccount when server.serviceAccount.create is false" .Values.server.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{/* ServiceAccount of the Job that runs before an uninstall. */}}
{{- define "reattach.releaseServiceAccountName" -}}
{{ include "reattach.fullname" . }}-release
{{- end -}}

{{/* ServiceAccount of the Pod that `helm test` runs. */}}
{{- define "reattach.testServiceAccountName" -}}
{{ include "reattach.fullname" . }}-test
{{- end -}}

{{- define "reattach.image" -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end -}}
{{- end -}}

{{/* Host name at which task pods call the state API. The serving certificate is issued for this name. */}}
{{- define "reattach.serverHost" -}}
{{ include "reattach.serverName" . }}.{{ .Release.Namespace }}.svc
{{- end -}}

{{- define "reattach.caSecretName" -}}
{{ include "reattach.fullname" . }}-ca
{{- end -}}

{{- define "reattach.tlsSecretName" -}}
{{ include "reattach.serverName" . }}-tls
{{- end -}}

{{/* Least privilege: no root user, no capabilities, a read-only root file system. */}}
{{- define "reattach.podSecurityContext" -}}
runAsNonRoot: true
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{- define "reattach.containerSecurityContext" -}}
allowPrivilegeEscalation: false
capabilities:
  drop: [ALL]
privileged: false
readOnlyRootFilesystem: true
{{- end -}}

{{/* Fields that all pods share: service account, image pull secrets, security and scheduling. Takes a dict: root, component (operator, server, release or test), values. */}}
{{- define "reattach.podSpec" -}}
serviceAccountName: {{ include (printf "reattach.%sServiceAccountName" .component) .root }}
{{- with .root.Values.imagePullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . | quote }}
  {{- end }}
{{- end }}
{{- with .values.priorityClassName }}
priorityClassName: {{ . | quote }}
{{- end }}
enableServiceLinks: false
securityContext:
  {{- include "reattach.podSecurityContext" .root | nindent 2 }}
{{- with .values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .values.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/*
Spread over nodes, where possible. Zones are not included: the scheduler ignores a node that lacks one of the topology keys, so a cluster
without zones would not spread at all. A rollout does not count the pods of the previous ReplicaSet, because they leave. Takes a dict: root,
component.
*/}}
{{- define "reattach.topologySpreadConstraints" -}}
- maxSkew: 1
  topologyKey: kubernetes.io/hostname
  whenUnsatisfiable: ScheduleAnyway
  labelSelector:
    matchLabels:
      {{- include "reattach.selectorLabels" .root | nindent 6 }}
      app.kubernetes.io/component: {{ .component }}
  matchLabelKeys: [pod-template-hash]
{{- end -}}

{{/*
Labels and annotations of a pod. They don't include the chart's version, because a new version would restart pods that did not change. The
chart's labels override podLabels, because selectors depend on them. Takes a dict like reattach.podSpec.
*/}}
{{- define "reattach.podMetadata" -}}
{{- with .values.podAnnotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{ end -}}
labels:
  {{- toYaml (merge (dict "app.kubernetes.io/component" .component) (fromYaml (include "reattach.selectorLabels" .root)) .values.podLabels) | nindent 2 }}
{{- end -}}

{{/* "true" if the processes serve /metrics, which a Service, PodMonitor or ServiceMonitor for it implies. Otherwise empty. */}}
{{- define "reattach.serveMetrics" -}}
{{- if or .Values.metrics.enabled .Values.metrics.service.enabled .Values.metrics.podMonitor.enabled .Values.metrics.serviceMonitor.enabled }}true{{ end -}}
{{- end -}}

{{/* "true" if the operator reads Nodes. Otherwise empty. */}}
{{- define "reattach.readNodes" -}}
{{- $reads := not .Values.watchNamespaces -}}
{{- if kindIs "bool" .Values.nodes.evidence }}{{ $reads = .Values.nodes.evidence }}{{ end -}}
{{- if and .Values.nodes.deletedMeansDead (not $reads) }}{{ fail "nodes.deletedMeansDead requires nodes.evidence: true" }}{{ end -}}
{{- if $reads }}true{{ end -}}
{{- end -}}

{{/* Probes with generous timeouts for a busy process. A process that hangs for one minute is restarted. */}}
{{- define "reattach.probes" -}}
livenessProbe:
  httpGet: {path: /healthz, port: health}
  periodSeconds: 10
  timeoutSeconds: 5
  failureThreshold: 6
readinessProbe:
  httpGet: {path: /readyz, port: health}
  periodSeconds: 5
  timeoutSeconds: 3
  failureThreshold: 2
{{- end -}}
