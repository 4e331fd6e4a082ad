{{/*
Rules for the namespaces that Reattach serves: one ClusterRole for all of them, or a Role in each of watchNamespaces.
Takes a dict: root, component (operator, server, release), rules, annotations (optional).
*/}}
{{- define "reattach.rbac" -}}
{{- $name := printf "%s-%s" (include "reattach.clusterName" .root) .component -}}
{{- $dot := . -}}
{{- range $namespace := .root.Values.watchNamespaces | default (list "") }}
{{- $scope := ternary "" "Cluster" (ne $namespace "") }}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: {{ $scope }}Role
metadata:
  name: {{ $name }}
  {{- include "reattach.rbacMetadata" (merge (dict "namespace" $namespace) $dot) | nindent 2 }}
rules:
  {{- $dot.rules | nindent 2 }}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: {{ $scope }}RoleBinding
metadata:
  name: {{ $name }}
  {{- include "reattach.rbacMetadata" (merge (dict "namespace" $namespace) $dot) | nindent 2 }}
roleRef:
  apiGroup: rbac.authorization.k8s.io
  kind: {{ $scope }}Role
  name: {{ $name }}
subjects:
{{ include "reattach.rbacSubject" $dot }}
{{- end }}
{{- end -}}

{{/* Rules for the release's own namespace (scope "") or for what belongs to no namespace (scope "Cluster"). Takes a dict: root, component, scope, name, rules, annotations (optional). */}}
{{- define "reattach.rbacOf" }}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: {{ .scope }}Role
metadata:
  name: {{ .name }}
  {{- include "reattach.rbacMetadata" . | nindent 2 }}
rules:
  {{- .rules | nindent 2 }}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: {{ .scope }}RoleBinding
metadata:
  name: {{ .name }}
  {{- include "reattach.rbacMetadata" . | nindent 2 }}
roleRef:
  apiGroup: rbac.authorization.k8s.io
  kind: {{ .scope }}Role
  name: {{ .name }}
subjects:
{{ include "reattach.rbacSubject" . }}
{{- end -}}

{{- define "reattach.rbacMetadata" -}}
{{- with .namespace -}}
namespace: {{ . }}
{{ end -}}
labels:
  {{- include "reattach.labels" .root | nindent 2 }}
  app.kubernetes.io/component: {{ .component }}
{{- with .annotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{- define "reattach.rbacSubject" -}}
- kind: ServiceAccount
  name: {{ include (printf "reattach.%sServiceAccountName" .component) .root }}
  namespace: {{ .root.Release.Namespace }}
{{- end -}}

{{/* What the operator may do in the namespaces that Reattach serves; docs/install.md says why. */}}
{{- define "reattach.operatorRules" -}}
- apiGroups: [reattach.dev]
  resources: [taskruns]
  verbs: [get, list, patch, watch]  # patch: to take its finalizer off; an admission policy allows no more
- apiGroups: [reattach.dev]
  resources: [taskruns/status]
  verbs: [patch]
- apiGroups: [reattach.dev]
  resources: [taskruns/finalizers]  # to own pods where OwnerReferencesPermissionEnforcement is on
  verbs: [update]
- apiGroups: [""]
  resources: [pods]
  verbs: [create, delete, get, list, patch, watch]
- apiGroups: [""]
  resources: [configmaps]
  verbs: [get, list, patch, update, watch]
- apiGroups: [events.k8s.io]
  resources: [events]
  verbs: [create]
- apiGroups: [""]
  resources: [namespaces]  # whether it is being deleted, and so nobody can be waited for
  verbs: [get]
{{- end -}}

{{/* What the server may do in the namespaces that Reattach serves; docs/install.md says why. */}}
{{- define "reattach.serverRules" -}}
- apiGroups: [""]
  resources: [pods]
  verbs: [get]
- apiGroups: [reattach.dev]
  resources: [taskruns]  # an admission policy lets it put on its finalizer and change nothing else
  verbs: [get, patch]
- apiGroups: [reattach.dev]
  resources: [taskruns/status]
  verbs: [patch]
- apiGroups: [reattach.dev]
  resources: [taskruns/finalizers]  # to own ConfigMaps where OwnerReferencesPermissionEnforcement is on
  verbs: [update]
- apiGroups: [""]
  resources: [configmaps]
  verbs: [create, get, update]
{{- end -}}

{{/* What the operator may do in its own namespace. */}}
{{- define "reattach.operatorOwnRules" -}}
- apiGroups: [coordination.k8s.io]
  resources: [leases]
  verbs: [create]  # can't be given for one name alone
- apiGroups: [coordination.k8s.io]
  resources: [leases]
  resourceNames: [{{ include "reattach.operatorName" . }}]
  verbs: [get, patch, update]
{{- if .Values.certificates.certManager.enabled }}
- apiGroups: [""]
  resources: [secrets]
  resourceNames: [{{ include "reattach.tlsSecretName" . }}]
  verbs: [get]
{{- else }}
- apiGroups: [""]
  resources: [secrets]
  verbs: [create]  # can't be given for one name alone
- apiGroups: [""]
  resources: [secrets]
  resourceNames: [{{ include "reattach.caSecretName" . }}, {{ include "reattach.tlsSecretName" . }}]
  verbs: [get, update]
{{- end }}
{{- end -}}

{{/* The operator refuses to start on an older schema than it writes. */}}
{{- define "reattach.operatorSchemaRules" -}}
- apiGroups: [apiextensions.k8s.io]
  resources: [customresourcedefinitions]
  resourceNames: [taskruns.reattach.dev]
  verbs: [get]
{{- end -}}

{{/* The state API asks whose a token is. */}}
{{- define "reattach.serverTokenRules" -}}
- apiGroups: [authentication.k8s.io]
  resources: [tokenreviews]
  verbs: [create]
{{- end -}}

{{/* What the release Job may do, which exists only while the chart is uninstalled. */}}
{{- define "reattach.releaseRules" -}}
- apiGroups: [reattach.dev]
  resources: [taskruns]
  verbs: [get, list, patch]
- apiGroups: [""]
  resources: [configmaps, pods]
  verbs: [get, list, patch]
{{- end -}}

{{- define "reattach.releaseOwnRules" -}}
- apiGroups: [apps]
  resources: [deployments]
  resourceNames: [{{ include "reattach.operatorName" . }}, {{ include "reattach.serverName" . }}]
  verbs: [delete, get]
- apiGroups: [""]
  resources: [pods]
  verbs: [list]
- apiGroups: [coordination.k8s.io]
  resources: [leases]
  resourceNames: [{{ include "reattach.operatorName" . }}]
  verbs: [delete]
{{- if not .Values.certificates.certManager.enabled }}
- apiGroups: [""]
  resources: [secrets]
  resourceNames: [{{ include "reattach.caSecretName" . }}, {{ include "reattach.tlsSecretName" . }}]
  verbs: [delete]
{{- end }}
{{- end -}}
