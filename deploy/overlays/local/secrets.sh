#!/usr/bin/env bash
# Makes every secret of the local overlay, into a folder that git ignores. What is there already stays, but for certificates that end within
# a week: those are made anew, with a new CA (then: kubectl apply -k deploy/overlays/local, kubectl -n ordermesh rollout restart deployment).
#
# Delete the folder to begin anew, and PostgreSQL's volume with it: that has the password of its first start, and refuses a new one
# (kubectl -n ordermesh delete statefulset/postgres pvc/data-postgres-0).
#
#   deploy/overlays/local/secrets.sh [ORDERMESH]
#
# ORDERMESH is the program, which makes the certificates (default: the newest build in target/). Needs openssl.
set -euo pipefail
umask 077
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../../.." && pwd)
secrets=$here/secrets
program=${1:-}
if [ -z "$program" ]; then
  program=$(ls -t "${CARGO_TARGET_DIR:-$root/target}"/{release,debug}/ordermesh 2>/dev/null | head -n 1 || true)
fi
[ -x "$program" ] || { echo "secrets.sh: no program at '${program:-target/}'; build it first: cargo build --release" >&2; exit 1; }
mkdir -p "$secrets"

make() { # make FILE COMMAND...: what the command prints, unless the file is there
  local file=$secrets/$1
  shift
  [ -s "$file" ] && return 0
  "$@" >"$file.new"
  mv "$file.new" "$file"
  echo "made ${file#"$root"/}"
}
password() { openssl rand -hex 24 | tr -d '\n'; }
operator() { printf 'operator@ordermesh.local %s\n' "$(openssl rand -hex 16)"; }
databases() { # one role and one database here; each service has a schema of its own
  local service
  for service in user order payment data gateway; do
    echo "$service=postgres://ordermesh:$(cat "$secrets/postgres-password")@postgres.ordermesh.svc.cluster.local:5432/ordermesh"
  done
}

make signing-key.pem openssl genpkey -algorithm ed25519
make operator operator
make gateway-api-key password
make postgres-password password
make database.env databases

tls=$secrets/tls
current() { # are the certificates all there, and good for a week and more?
  local name
  for name in ca user order payment data gateway; do
    openssl x509 -in "$tls/$name.pem" -noout -checkend $((7 * 86400)) >/dev/null 2>&1 || return 1
  done
}
if ! current; then
  rm -rf "$tls"
  "$program" certs --dir "$tls"
  # Nobody needs it again: new certificates come with a new CA.
  rm -f "$tls/ca.key"
  echo "made ${tls#"$root"/}"
fi
