#!/usr/bin/env python3
"""Checks the release: its archive, packed twice from the release binary by dist.sh, its SBOM, and that everything names one version.
The static build itself is a step of a release: it compiles for minutes, and dist.sh checks its result.

    .ci/dist.py [PART...]

ORDERMESH_BIN overrides target/release/ordermesh. The tools of .ci/tools.sh are found in .ci/bin.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

sys.dont_write_bytecode = True
sys.path.insert(0, str(Path(__file__).resolve().parent))

from system import BIN, ROOT, check, run_named  # noqa: E402

SCHEMAS = ROOT / ".ci/bin/cyclonedx/cyclonedx/schema/_res"
VERSION = tomllib.loads((ROOT / "Cargo.toml").read_text())["workspace"]["package"]["version"]
# A source file's path in the program: of a crate from the registry.
CRATE = re.compile(rb"/registry/src/[^/]+/([A-Za-z0-9_-]+?)-(\d+\.\d+\.\d+[A-Za-z0-9.+-]*)/")


def pack(target):
    """Packs the release binary with dist.sh in a folder; returns {file of target/dist: bytes}."""
    subprocess.run([ROOT / ".ci/dist.sh", BIN], env={**os.environ, "CARGO_TARGET_DIR": target}, stdout=subprocess.DEVNULL, check=True)
    return {path.name: path.read_bytes() for path in (Path(target) / "dist").iterdir()}


def archive():
    """Two archives of one program: the same bytes, with checksums, and without paths of this machine."""
    with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as two:
        first, second = pack(one), pack(two)
        check(first == second, f"the same bytes twice: {[name for name in first if first[name] != second.get(name)]}")
        name = f"ordermesh-{VERSION}-{os.uname().machine}-linux"
        dist = Path(one) / "dist"
        subprocess.run(["sha256sum", "--check", "--quiet", "SHA256SUMS"], cwd=dist, check=True)
        subprocess.run(["tar", "--extract", "--gzip", "--file", dist / f"{name}.tar.gz", "--directory", one], check=True)
        subprocess.run(["sha256sum", "--check", "--quiet", "SHA256SUMS"], cwd=Path(one) / name, check=True)
        files = {path.relative_to(Path(one) / name).as_posix(): path for path in (Path(one) / name).rglob("*") if path.is_file()}
        summed = {line.split("  ")[1] for line in files["SHA256SUMS"].read_text().splitlines()}
        check(summed == set(files) - {"SHA256SUMS"}, f"a checksum for each file: {summed ^ set(files)}")
        wanted = {"ordermesh", "LICENSE", "CHANGELOG.md", "sbom.cdx.json", "man/ordermesh.1", *(f"completions/ordermesh.{shell}" for shell in ("bash", "zsh", "fish"))}
        check(wanted <= set(files), f"complete: {wanted - set(files)} are missing")
        # The release binary has them: dist.sh looks into the one that it builds.
        home = os.environ.get("CARGO_HOME", str(Path.home() / ".cargo"))
        for file, path in files.items():
            found = [text for text in (str(ROOT), home, one) if text.encode() in path.read_bytes() and file != "ordermesh"]
            check(not found, f"no path of this machine in {file}: {found}")
        version = subprocess.run([files["ordermesh"], "--version"], capture_output=True, text=True, check=True).stdout
        check(f" {VERSION} " in f"{version.replace(chr(10), ' ')} ", f"the program is {VERSION}: {version}")
        return f"{len(files)} files, {len(first[f'{name}.tar.gz']) / 1e6:.1f} MB"


def sbom():
    """The SBOM follows CycloneDX's schema, and lists each crate that left a path in the program."""
    sys.path.append(str(ROOT / ".ci/bin/jsonschema"))
    import jsonschema_rs

    bom = json.loads(subprocess.run([ROOT / ".ci/sbom.py"], stdout=subprocess.PIPE, check=True).stdout)

    def schema(name):
        return json.loads((SCHEMAS / f"{name}.SNAPSHOT.schema.json").read_text())

    # By the names that the schema itself gives them.
    others = [(f"http://cyclonedx.org/schema/{name}.SNAPSHOT.schema.json", schema(name)) for name in ("spdx", "jsf-0.82", "cryptography-defs")]
    registry = jsonschema_rs.Registry(others)
    errors = [f"{error.instance_path}: {error.message}" for error in jsonschema_rs.validator_for(schema("bom-1.6"), registry=registry).iter_errors(bom)]
    check(not errors, f"valid CycloneDX 1.6: {errors[:5]}")
    required = {f"{each['name']}-{each['version']}" for each in bom["components"] if each["scope"] == "required"}
    in_program = {b"-".join(found).decode() for found in CRATE.findall(BIN.read_bytes())}
    check(len(in_program) > 50, f"the program contains paths of its crates: {in_program}")
    check(in_program <= required, f"each crate of the program is a required component: {in_program - required} are not")
    unnamed = [each["bom-ref"] for each in bom["components"] if not each.get("purl") or not each["licenses"][0]["expression"]]
    check(not unnamed, f"each component has a licence and a package URL: {unnamed}")
    return f"{len(bom['components'])} crates, {len(required)} of them in the program, where {len(in_program)} left a path"


def version():
    """The workspace, its lock file, the image's tags and label, and the changelog name one version."""
    found = {}
    for name in subprocess.run(["git", "ls-files", "deploy", ".ci/k8s_cluster.py"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split():
        for tag in re.findall(r"(?:\bordermesh:|newTag: |[vV]ersion: |tag: |image\.version=\")(\d+\.\d+\.\d+)", (ROOT / name).read_text(encoding="utf-8")):
            found.setdefault(tag, set()).add(name)
    check(set(found) == {VERSION}, f"every version in deploy/ and .ci/k8s_cluster.py is {VERSION}: {found}")
    own = {each["name"]: each["version"] for each in tomllib.loads((ROOT / "Cargo.lock").read_text())["package"] if "source" not in each}
    check(set(own.values()) == {VERSION}, f"every crate of ours is {VERSION} in Cargo.lock: {own}")
    releases = re.findall(r"^## (.*)$", (ROOT / "deploy/CHANGELOG.md").read_text(), re.MULTILINE)
    newest = next(release for release in releases if release != "Unreleased")
    check(re.fullmatch(re.escape(VERSION) + r" \(\d{4}-\d\d-\d\d\)", newest), f"the changelog's newest release is {VERSION} with its date: {newest}")
    return f"{VERSION} in {len(found[VERSION])} files"


if __name__ == "__main__":
    sys.exit(run_named("DIST", {"version": version, "sbom": sbom, "archive": archive}, sys.argv[1:], ["git", "tar", "sha256sum"]))
