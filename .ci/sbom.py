#!/usr/bin/env python3
"""Prints the software bill of materials of the program `ordermesh` as CycloneDX 1.6 JSON: the crates of its dependency graph for one
target, as cargo resolves it, with licence, checksum and package URL. Crates that only take part in the build (proc macros, build scripts
and what they need) have the scope `excluded`. The same sources give the same bytes: the date is SOURCE_DATE_EPOCH's, the serial number a
hash of the contents.

    .ci/sbom.py [TARGET]
"""

import json
import os
import re
import subprocess
import sys
import tomllib
import uuid
from datetime import UTC, datetime
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LINE = re.compile(r"(\d+)\|(\S+) v(\S+)(?: \(.*\))?\|([^|]*)\|([^|]*)$")


def tree(target, edges):
    """The graph as `cargo tree` prints it, depth first: {(name, version): (licence, repository, its dependencies)}."""
    lines = subprocess.run(
        ["cargo", "tree", "--locked", "--package", "ordermesh", "--edges", edges, "--target", target, "--prefix", "depth", "--format", "|{p}|{l}|{r}|"],
        cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()
    graph, path = {}, []
    for line in filter(None, lines):
        # A crate that was printed before has " (*)" at the end, and no dependencies here.
        depth, name, version, licence, repository = LINE.match(line.rpartition("|")[0]).groups()
        _, _, dependencies = graph.setdefault((name, version), (re.sub(" */ *", " OR ", licence), repository, set()))
        path[int(depth):] = [(name, version)]
        if len(path) > 1:
            graph[path[-2]][2].add((name, version))
    return graph


def main(target):
    graph, linked = tree(target, "normal,build"), tree(target, "normal,no-proc-macro")
    locked = {(each["name"], each["version"]): each.get("checksum") for each in tomllib.loads((ROOT / "Cargo.lock").read_text())["package"]}

    def purl(crate):
        # The workspace's own crates are in no registry: crates.io has others with the same names.
        return f"pkg:cargo/{crate[0]}@{crate[1]}" if locked[crate] else f"pkg:generic/ordermesh/{crate[0]}@{crate[1]}"

    def component(crate):
        licence, repository, _ = graph[crate]
        found = {"type": "library", "bom-ref": purl(crate), "name": crate[0], "version": crate[1], "scope": "required" if crate in linked else "excluded"}
        if locked[crate]:
            found["hashes"] = [{"alg": "SHA-256", "content": locked[crate]}]
        found |= {"licenses": [{"expression": licence}], "purl": purl(crate)}
        return found | ({"externalReferences": [{"type": "vcs", "url": repository}]} if repository else {})

    program = next(crate for crate in graph if crate[0] == "ordermesh")
    crates = sorted(graph)
    bom = {
        "metadata": {
            "timestamp": datetime.fromtimestamp(int(os.environ.get("SOURCE_DATE_EPOCH", 0)), UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "component": component(program) | {"type": "application"},
            "properties": [{"name": "ordermesh:target", "value": target}, {"name": "ordermesh:commit", "value": os.environ.get("ORDERMESH_COMMIT", "unknown")}],
        },
        "components": [component(crate) for crate in crates if crate != program],
        "dependencies": [{"ref": purl(crate), "dependsOn": sorted(map(purl, graph[crate][2]))} for crate in crates],
    }
    serial = uuid.uuid5(uuid.NAMESPACE_URL, json.dumps(bom))
    print(json.dumps({"bomFormat": "CycloneDX", "specVersion": "1.6", "serialNumber": f"urn:uuid:{serial}", "version": 1, **bom}, indent=1))


if __name__ == "__main__":
    host = next(line.split()[1] for line in subprocess.run(["rustc", "-vV"], stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines() if line.startswith("host:"))
    main(sys.argv[1] if len(sys.argv) > 1 else host)
