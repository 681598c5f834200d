#!/usr/bin/env bash
# Makes every secret of the local overlay, into a folder that git ignores. What is there already stays: delete the folder to begin anew.
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
if [ ! -s "$secrets/tls/ca.pem" ]; then
  "$program" certs --dir "$secrets/tls"
  # Nobody needs it again: with a new folder, everybody gets a new CA.
  rm -f "$secrets/tls/ca.key"
  echo "made ${secrets#"$root"/}/tls"
fi
