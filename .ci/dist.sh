#!/usr/bin/env bash
# Builds a release into target/dist: ordermesh-VERSION-MACHINE-linux.tar.gz, its checksum, and the SBOM beside it. The archive contains the
# program, linked statically, completions, manual pages, the licence, the changelog, the SBOM, and the checksum of each. A commit gives the
# same bytes in any folder on any machine with the same rustc, C compiler and libc.
#
#   .ci/dist.sh              builds the program, then packs it
#   .ci/dist.sh PROGRAM      packs this program instead
#
# Needs rust, a C compiler, git and python3.
set -euo pipefail

cd "$(dirname "$0")/.."
umask 022
export LC_ALL=C
ORDERMESH_COMMIT=$(git rev-parse --short=12 HEAD)
SOURCE_DATE_EPOCH=$(git log -1 --format=%ct)
export ORDERMESH_COMMIT SOURCE_DATE_EPOCH
target=$(uname -m)-unknown-linux-gnu
folder=${CARGO_TARGET_DIR:-target}
dist=$folder/dist
program=${1:-$folder/$target/release/ordermesh}
version=$(sed -n 's/^version = "\(.*\)"$/\1/p' Cargo.toml | head -n 1)
name=ordermesh-$version-$(uname -m)-linux

if [ $# = 0 ]; then
  if ! git diff --quiet HEAD; then
    echo "there are changes that are not committed, and the program names its commit" >&2
    exit 1
  fi
  # This machine's paths stay out of the program. With glibc instead of musl no second standard library or C compiler is needed; since 2.34 its
  # resolver reads /etc/hosts and asks DNS without shared libraries, so the linker's warnings about getaddrinfo are of no concern.
  # --target: without it the flags would apply to build scripts and proc macros too.
  paths=("$(rustc --print sysroot)=/rust" "${CARGO_HOME:-$HOME/.cargo}=/cargo" "$PWD=/ordermesh" "$(realpath -m "$folder")=/ordermesh/target")
  # CFLAGS: of SQLite, mimalloc and ring.
  RUSTFLAGS="-C target-feature=+crt-static ${paths[*]/#/--remap-path-prefix=}" CFLAGS="${paths[*]/#/-ffile-prefix-map=}" \
    cargo build --release --locked --package ordermesh --target "$target"
  if readelf --program-headers "$program" | grep -q INTERP; then
    echo "$program is not linked statically" >&2
    exit 1
  fi
  for path in "${paths[@]%=*}"; do
    if grep -qaF "$path/" "$program"; then
      echo "$program contains the path $path" >&2
      exit 1
    fi
  done
fi

rm -rf "$dist"
mkdir -p "$dist/$name/completions" "$dist/$name/man"
install -m 0755 "$program" "$dist/$name/ordermesh"
for shell in bash zsh fish; do
  "$program" completions $shell >"$dist/$name/completions/ordermesh.$shell"
done
"$program" man "$dist/$name/man" >/dev/null
.ci/sbom.py "$target" >"$dist/sbom.cdx.json"
cp "$dist/sbom.cdx.json" LICENSE deploy/CHANGELOG.md "$dist/$name"
(cd "$dist/$name" && find . -type f ! -name SHA256SUMS -printf '%P\n' | sort | xargs sha256sum >SHA256SUMS)
tar --create --directory "$dist" --format=ustar --sort=name --owner=0 --group=0 --numeric-owner --mode=go=u-w --mtime="@$SOURCE_DATE_EPOCH" "$name" |
  gzip -n >"$dist/$name.tar.gz"
rm -r "${dist:?}/$name"
(cd "$dist" && sha256sum "$name.tar.gz" sbom.cdx.json >SHA256SUMS && cat SHA256SUMS)
