{{/*
Rules for the namespaces that Reattach serves: one ClusterRole for all namespaces, or a Role in each of watchNamespaces.
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

{{/* Rules for the release's own namespace (scope "") or for cluster-scoped resources (scope "Cluster"). Takes a dict: root, component, scope, name, rules, annotations (optional). */}}
{{- define "reattach.rbacSingle" }}
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

{{/* Permissions of the operator in the namespaces that Reattach serves; docs/install.md explains each. */}}
{{- define "reattach.operatorRules" -}}
- apiGroups: [reattach.dev]
  resources: [taskruns]
  # delete: ended ones whose spec.ttl has passed. patch: to add and remove its finalizer. An admission policy rejects other changes.
  verbs: [delete, get, list, patch, watch]
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
  resources: [podtemplates]  # dry run only, to check the template of a rejected pod. An admission policy rejects other requests.
  verbs: [create]
- apiGroups: [""]
  resources: [configmaps]  # create: records of orphaned jobs, copies of states
  verbs: [create, get, list, patch, update, watch]
- apiGroups: [events.k8s.io]
  resources: [events]
  verbs: [create, list]  # list: to see an eviction after which the container exited with 0, and why a pod does not start
- apiGroups: [""]
  resources: [namespaces]  # to see that it is being deleted, so that holds can no longer be resolved
  verbs: [get]
{{- end -}}

{{/* Permissions of the state API in the namespaces that Reattach serves; docs/install.md explains each. */}}
{{- define "reattach.serverRules" -}}
- apiGroups: [""]
  resources: [pods]
  verbs: [get]
- apiGroups: [reattach.dev]
  resources: [taskruns]  # patch: to add its finalizer; an admission policy rejects other changes
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

{{/* Permissions of the operator in its own namespace. */}}
{{- define "reattach.operatorOwnRules" -}}
- apiGroups: [coordination.k8s.io]
  resources: [leases]
  verbs: [create]  # create can't be restricted by name
- apiGroups: [coordination.k8s.io]
  resources: [leases]
  resourceNames: [{{ include "reattach.operatorName" . }}]
  verbs: [get, patch, update]
- apiGroups: [""]
  resources: [services]  # for pods that can't resolve its name
  resourceNames: [{{ include "reattach.serverName" . }}]
  verbs: [get]
{{- if .Values.certificates.certManager.enabled }}
- apiGroups: [""]
  resources: [secrets]
  resourceNames: [{{ include "reattach.tlsSecretName" . }}]
  verbs: [get]
{{- else }}
- apiGroups: [""]
  resources: [secrets]
  verbs: [create]  # create can't be restricted by name
- apiGroups: [""]
  resources: [secrets]
  resourceNames: [{{ include "reattach.caSecretName" . }}, {{ include "reattach.tlsSecretName" . }}]
  verbs: [get, update]
{{- end }}
{{- end -}}

{{/* The operator reads the CRD, because it refuses to start if the schema is older than itself. */}}
{{- define "reattach.operatorSchemaRules" -}}
- apiGroups: [apiextensions.k8s.io]
  resources: [customresourcedefinitions]
  resourceNames: [taskruns.reattach.dev]
  verbs: [get]
{{- end -}}

{{/* A Node may be evidence that its pods have ended; docs/install.md explains the values `nodes`. */}}
{{- define "reattach.operatorNodeRules" -}}
- apiGroups: [""]
  resources: [nodes]
  verbs: [get]
{{- end -}}

{{/* The state API authenticates tokens with TokenReviews. */}}
{{- define "reattach.serverTokenRules" -}}
- apiGroups: [authentication.k8s.io]
  resources: [tokenreviews]
  verbs: [create]
{{- end -}}

{{/* Permissions of the release Job, which exists only during an uninstall. */}}
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
