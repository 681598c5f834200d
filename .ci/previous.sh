#!/usr/bin/env bash
# Builds the previous release, the commit in .ci/previous-release, to target/previous/ordermesh. It shares this
# build's target folder, so that only our own crates are built twice. These are cleaned before and after: cargo identifies a
# workspace's crates by their path in it, so it mistakes one release's crates for the other's when their files are newer.
set -euo pipefail

cd "$(dirname "$0")/.."
target=$(realpath -m "${CARGO_TARGET_DIR:-target}")
commit=$(cat .ci/previous-release)
if [ "$(cat "$target/previous/commit" 2>/dev/null)" = "$commit" ] && [ -x "$target/previous/ordermesh" ]; then
  exit 0
fi
mkdir -p "$target/previous"
rm -rf "$target/previous/source"
mkdir "$target/previous/source"
git archive "$commit" | tar -x -C "$target/previous/source"
(
  cd "$target/previous/source"
  export CARGO_TARGET_DIR=$target
  cargo clean --quiet --release --workspace --locked
  cargo build --release --locked
  cp "$target/release/ordermesh" "$target/previous/ordermesh"
  cargo clean --quiet --release --workspace --locked
)
echo "$commit" >"$target/previous/commit"
