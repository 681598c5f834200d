#!/usr/bin/env bash
# Creates every secret of the local overlay, in a folder that git ignores.
#
#   secrets.sh [ORDERMESH]
#       Creates what is missing and keeps what exists, so it can be run again at any time. Certificates that expire within a week are
#       renewed under the same CA: apply them (kubectl apply -k deploy/overlays/local), and running pods reload them.
#   secrets.sh rotate-ca 1|2|3 [ORDERMESH]
#       Replaces the certificate authority, without an outage. Each step is followed by kubectl apply -k deploy/overlays/local:
#       1: a new CA beside the old one; all services trust both
#       2: certificates of the new CA
#       3: no service trusts the old one any more
#       A step fails until the previous one is in the cluster; it then waits until every pod has loaded that.
#
# ORDERMESH is the program, which issues the certificates (default: the newest build in target/). Needs openssl.
#
# To start over: kubectl delete -k deploy/overlays/local, delete the folder, and PostgreSQL's volume with it, which keeps the password of
# its first start (kubectl -n ordermesh delete pvc/data-postgres-0). While the cluster has Secrets that the folder lacks, nothing is
# created: replacing certificates and passwords in use would be an outage.
set -euo pipefail
umask 077
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../../.." && pwd)
secrets=$here/secrets
tls=$secrets/tls
# A changed Secret reaches its pods' folders within a minute (the kubelet's sync), and is read there every 10 s.
settle_seconds=${SETTLE_SECONDS:-150}
services="user order payment data gateway"

fail() { echo "secrets.sh: $*" >&2; exit 1; }
say() { echo "${*//"$root/"/}"; }

step=""
if [ "${1:-}" = rotate-ca ]; then
  step=${2:-}
  [[ $step = [123] ]] || fail "rotate-ca takes a step: 1, 2 or 3"
  shift 2
fi
program=${1:-}
if [ -z "$program" ]; then
  program=$(ls -t "${CARGO_TARGET_DIR:-$root/target}"/{release,debug}/ordermesh 2>/dev/null | head -n 1 || true)
fi
[ -x "$program" ] || fail "no program at '${program:-target/}'; build it first: cargo build --release"
mkdir -p "$secrets"

ask_cluster() { command -v kubectl >/dev/null && kubectl --request-timeout=5s -n ordermesh get secret "$@" 2>/dev/null; }

# --- created once

make() { # make FILE COMMAND...: writes the command's output to FILE, unless it exists
  local file=$secrets/$1
  shift
  [ -s "$file" ] && return 0
  "$@" >"$file.new"
  mv "$file.new" "$file"
  say "created $file"
}
password() { openssl rand -hex 24 | tr -d '\n'; }
operator() { printf 'operator@ordermesh.local %s\n' "$(openssl rand -hex 16)"; }
databases() { # one role and one database here; each service has its own schema
  local service
  for service in $services; do
    echo "$service=postgres://ordermesh:$(cat "$secrets/postgres-password")@postgres.ordermesh.svc.cluster.local:5432/ordermesh"
  done
}
base64url() { openssl base64 -A | tr '+/' '-_' | tr -d '='; }
token_keys() { # the public half of the signing key, as returned by ListSigningKeys (RFC 7517; its id by RFC 7638)
  local x kid
  x=$(openssl pkey -in "$secrets/signing-key.pem" -pubout -outform DER | tail -c 32 | base64url)
  kid=$(printf '{"crv":"Ed25519","kty":"OKP","x":"%s"}' "$x" | openssl dgst -sha256 -binary | base64url)
  printf '{"keys":[{"kid":"%s","kty":"OKP","crv":"Ed25519","x":"%s","alg":"EdDSA"}]}\n' "$kid" "$x"
}

make_all() {
  if ! [ -s "$tls/ca.pem" ] && [ -s "$secrets/trust.pem" ]; then
    fail "$tls is gone, and trust.pem has its CA: restore it, or start over (see the head of this file)"
  fi
  if ! [ -s "$tls/ca.pem" ] && ask_cluster order-tls -o name >/dev/null; then
    fail "the cluster has Secrets that $secrets lacks: replacing those in use would be an outage." \
      "Restore the folder, or start over (see the head of this file)"
  fi
  if ! [ -s "$secrets/postgres-password" ] && [ -s "$secrets/database.env" ]; then
    fail "$secrets/postgres-password is gone, and database.env has the password with which PostgreSQL was started: restore it"
  fi
  make signing-key.pem openssl genpkey -algorithm ed25519
  make operator operator
  make gateway-api-key password
  make postgres-password password
  make database.env databases
  # Always matches the existing key.
  token_keys >"$secrets/token-keys.json.new"
  mv "$secrets/token-keys.json.new" "$secrets/token-keys.json"
  certificates
}

# --- certificates

current() { # whether all certificates exist, are of this CA, and are valid for at least a week
  local name
  for name in $services; do
    openssl x509 -in "$tls/$name.pem" -noout -checkend $((7 * 86400)) >/dev/null 2>&1 || return 1
    openssl verify -CAfile "$tls/ca.pem" "$tls/$name.pem" >/dev/null 2>&1 || return 1
  done
}

certificates() {
  if ! current; then
    # An earlier version of this script deleted the key.
    [ ! -s "$tls/ca.pem" ] || [ -s "$tls/ca.key" ] || fail "certificates have to be renewed, but the key of their CA," \
      "$tls/ca.key, does not exist: replace the CA (rotate-ca 1)"
    "$program" certs --dir "$tls" >/dev/null
    say "created $tls: apply them"
  fi
  [ -s "$secrets/trust.pem" ] || trust "$tls/ca.pem"
}

trust() { # writes the trust bundle of every pod, atomically
  cat "$@" >"$secrets/trust.pem.new"
  mv "$secrets/trust.pem.new" "$secrets/trust.pem"
}
trusted() { grep -c 'BEGIN CERTIFICATE' "$secrets/trust.pem"; }

# --- replacing the CA

in_cluster() { # fails unless KEY of each service's Secret in the cluster equals FILE
  local key=$1 file=$2 service
  for service in $services; do
    ask_cluster "$service-tls" -o "jsonpath={.data.${key//./\\.}}" | openssl base64 -d -A | cmp -s - "${file//SERVICE/$service}" ||
      fail "step $step has to wait: $key of the Secret $service-tls is not ${file//SERVICE/$service}." \
        "First: kubectl apply -k deploy/overlays/local"
  done
}
settle() {
  say "waiting $settle_seconds s, until every pod has loaded the previous step"
  sleep "$settle_seconds"
}

rotate_1() {
  [ -s "$tls/ca.pem" ] || fail "there is no CA yet: run secrets.sh without a step"
  if [ "$(trusted)" != 1 ]; then
    [ -d "$tls-next" ] && fail "step 1 is done: apply it, then step 2"
    fail "a CA is being replaced: step 3 comes next"
  fi
  rm -rf "$tls-next"
  "$program" certs --dir "$tls-next" >/dev/null
  trust "$tls/ca.pem" "$tls-next/ca.pem"
  say "step 1: $secrets/trust.pem has both CAs. Now: kubectl apply -k deploy/overlays/local, then step 2"
}

rotate_2() {
  [ -d "$tls-next" ] && [ "$(trusted)" = 2 ] || fail "step 1 comes first: all services have to trust the new CA before it signs"
  in_cluster ca.crt "$secrets/trust.pem"
  settle
  rm -rf "$tls-old"
  mv "$tls" "$tls-old"
  mv "$tls-next" "$tls"
  rm -rf "$tls-old"
  say "step 2: certificates of the new CA. Now: kubectl apply -k deploy/overlays/local, then step 3"
}

rotate_3() {
  [ ! -d "$tls-next" ] || fail "step 2 comes first: the certificates are still the old CA's"
  [ "$(trusted)" = 2 ] || fail "no CA is being replaced: it begins with step 1"
  in_cluster tls.crt "$tls/SERVICE.pem"
  settle
  trust "$tls/ca.pem"
  say "step 3: $secrets/trust.pem has only the new CA. Now: kubectl apply -k deploy/overlays/local"
}

# Repairs an interrupted run.
if [ -d "$tls-old" ]; then
  if [ -d "$tls" ]; then rm -rf "$tls-old"; else mv "$tls-old" "$tls"; fi
fi
if [ -n "$step" ]; then
  [ -s "$secrets/trust.pem" ] || certificates
  "rotate_$step"
else
  make_all
fi
