{{/* A ValidatingAdmissionPolicyBinding with the action Deny. Takes a dict: root (the chart's context), name, everywhere and annotations (optional). */}}
{{/*
With watchNamespaces the policies apply only to these namespaces, unless `everywhere` is set. In other namespaces this release does not
act on TaskRuns or labels, and another release of Reattach with its own service accounts may serve them.
*/}}
{{- define "reattach.admissionBinding" -}}
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicyBinding
metadata:
  name: {{ .name }}
  labels:
    {{- include "reattach.labels" .root | nindent 4 }}
  {{- with .annotations }}
  annotations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
spec:
  policyName: {{ .name }}
  validationActions: [Deny]
  {{- if and .root.Values.watchNamespaces (not .everywhere) }}
  matchResources:
    namespaceSelector:
      matchExpressions:
      - key: kubernetes.io/metadata.name
        operator: In
        values: {{ toJson .root.Values.watchNamespaces }}
  {{- end }}
{{- end -}}

{{/* User names of the service accounts. */}}
{{- define "reattach.operatorUsername" -}}
system:serviceaccount:{{ .Release.Namespace }}:{{ include "reattach.operatorServiceAccountName" . }}
{{- end -}}

{{- define "reattach.serverUsername" -}}
system:serviceaccount:{{ .Release.Namespace }}:{{ include "reattach.serverServiceAccountName" . }}
{{- end -}}

{{- define "reattach.releaseUsername" -}}
system:serviceaccount:{{ .Release.Namespace }}:{{ include "reattach.releaseServiceAccountName" . }}
{{- end -}}

{{/*
Match condition: the request creates a TaskRun or changes its spec. Changes of labels and finalizers are not checked. So a TaskRun can
always be cleaned up, even if a newer version of Reattach accepted its spec.
*/}}
{{- define "reattach.admissionSpecIsNew" -}}
- name: the-spec-is-new-or-changed
  expression: oldObject == null || dyn(object.spec) != dyn(oldObject.spec)
{{- end -}}

{{/*
The labels, annotations and finalizers that only Reattach sets, as a condition on `key`. It excludes those that the adapter `kubernetes` sets on
external jobs. A job may be of any kind, or copy its labels to its pods, and Reattach does not trust these labels.
*/}}
{{- define "reattach.isReservedKey" -}}
key.startsWith('reattach.dev/') && !(key in ['reattach.dev/submission-token', 'reattach.dev/submitted-by', 'reattach.dev/submitted-as'])
{{- end -}}

{{/*
Condition: the request breaks at least one of these rules. Takes the variables and validations of a policy as YAML, and writes the variables out,
because match conditions have none. With this match condition, a policy is evaluated only to say what is wrong. The API server converts both objects
of a request once for the match conditions. For the rules and messages of a policy, it converts them three times more.
*/}}
{{- define "reattach.breaksARule" -}}
{{- $rules := fromYaml . -}}
{{- $all := list -}}
{{- range $rules.validations }}{{ $all = append $all (printf "(%s)" .expression) }}{{ end -}}
{{- $condition := printf "!(%s)" (join " && " $all) -}}
{{- range reverse ($rules.variables | default list) }}
{{- $condition = regexReplaceAllLiteral (printf "variables\\.%s\\b" .name) $condition (printf "(%s)" .expression) -}}
{{- end -}}
{{- $condition -}}
{{- end -}}
