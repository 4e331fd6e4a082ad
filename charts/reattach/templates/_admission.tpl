{{/* A ValidatingAdmissionPolicyBinding that denies. Takes a dict: root (the chart's context), name, everywhere (optional). */}}
{{/*
With watchNamespaces the policies hold in these namespaces alone: elsewhere nothing acts on a TaskRun or on our labels, and
another release of Reattach, with service accounts of its own, may serve them.
*/}}
{{- define "reattach.admissionBinding" -}}
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicyBinding
metadata:
  name: {{ .name }}
  labels:
    {{- include "reattach.labels" .root | nindent 4 }}
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

{{/* Who our service accounts are to the API server. */}}
{{- define "reattach.operatorUsername" -}}
system:serviceaccount:{{ .Release.Namespace }}:{{ include "reattach.operatorServiceAccountName" . }}
{{- end -}}

{{- define "reattach.serverUsername" -}}
system:serviceaccount:{{ .Release.Namespace }}:{{ include "reattach.serverServiceAccountName" . }}
{{- end -}}

{{/*
A change of labels or finalizers asks none of what is asked of a spec, so that a TaskRun can always be cleaned up, also one that
a newer version of Reattach accepted.
*/}}
{{- define "reattach.admissionSpecIsNew" -}}
- name: the-spec-is-new-or-changed
  expression: oldObject == null || dyn(object.spec) != dyn(oldObject.spec)
{{- end -}}
