{{/* The labels of every object. */}}
{{- define "ordermesh.labels" -}}
app.kubernetes.io/part-of: ordermesh
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}

{{/* The settings of all services: files/settings.env, with the release's namespace in its addresses, and the values on top. */}}
{{- define "ordermesh.settings" -}}
{{- $settings := dict }}
{{- range splitList "\n" (.Files.Get "files/settings.env") }}
{{- if and . (not (hasPrefix "#" .)) }}
{{- $pair := splitn "=" 2 . }}
{{- $_ := set $settings $pair._0 (replace ".ordermesh.svc." (printf ".%s.svc." $.Release.Namespace) $pair._1) }}
{{- end }}
{{- end }}
{{- mergeOverwrite $settings .Values.settings | toYaml }}
{{- end }}
