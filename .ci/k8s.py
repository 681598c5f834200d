#!/usr/bin/env python3
"""deploy/ on a real Kubernetes: checks manifests and image, applies the local overlay, and injects failures under load.

    .ci/k8s.py [PART...]      all parts, or these (see PARTS; those that need a cluster create one)
    .ci/k8s.py prepare        builds slow one-time prerequisites (the cluster's programs, PostgreSQL's image, the base): run it early, in the background

Needs go, python3 with pip, kubectl and the release binary (ORDERMESH_BIN). The image needs root. The parts on a cluster need a kind cluster
(KIND_CLUSTER: see .github/CONTRIBUTING.md), or scripts that create one, which are not in this repository (K8S_TOOLS, default ../shared/k8s
beside the checkout). What cannot run is skipped and reported as skipped, or fails if CI is set. If kubectl is not installed, the one that
the created cluster comes with is used. KEEP_CLUSTER=1 leaves the created cluster running.
"""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path

HERE = Path(__file__).resolve().parent
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the cluster is shut down
sys.dont_write_bytecode = True
sys.path.insert(0, str(HERE))
sys.path.append(str(HERE / "bin/yaml"))

from k8s_cluster import HOME, KIND, NO_CLUSTER, cluster, is_available, run, seconds_since  # noqa: E402
from system import BIN, ROOT, Failed, check, not_run  # noqa: E402

# The cluster's own kubectl comes last in PATH here, and first for commands on the cluster.
os.environ["PATH"] = f"{HERE / 'bin'}:{os.environ['PATH']}:{HOME / 'bin'}"
# Installs what is missing or has another version. Before the imports, because PyYAML is one of the tools.
for_cluster = ("grpcurl",) if KIND else ("grpcurl", "jaeger") if is_available() else ()
subprocess.run([HERE / "tools.sh", *"yaml kubeconform kube-score schemas hadolint helm".split(), *for_cluster], check=True)

import k8s_image  # noqa: E402
import k8s_manifests  # noqa: E402
import k8s_parts as parts  # noqa: E402
import k8s_secrets  # noqa: E402
import packages  # noqa: E402

# In sequence: the first four need no cluster; each of the rest continues on the state that the previous one left.
PARTS = {
    "secrets.sh": lambda _: k8s_secrets.script(),
    "manifests": lambda _: k8s_manifests.without_cluster(),
    "chart": lambda _: [packages.chart()],
    "image": None,
    "dry-run": k8s_manifests.dry_run,
    "apply": parts.apply,
    "secrets": parts.missing_secrets,
    "order": parts.order,
    "policies": parts.network_policies,
    "traffic": parts.traffic_policy,
    "migrate": parts.migrate,
    "deletes": parts.delete_and_kill_pods,
    "rolling": parts.rolling_update,
    "scale": parts.scale,
    "verify": parts.verify,
}


def prepare():
    """Builds what later runs reuse: the cluster's programs, PostgreSQL's image, the image's base."""
    if not k8s_image.skip_reason():
        k8s_image.base_tar()
    if is_available() and not KIND:
        with cluster() as created:
            created.load_third_parties(HERE / "bin/jaeger")


def main():
    wanted = sys.argv[1:] or list(PARTS)
    check(is_available() or "CI" not in os.environ, f"a test cluster is available: {NO_CLUSTER}")
    if wanted == ["prepare"]:
        prepare()
        return 0
    if unknown := set(wanted) - set(PARTS):
        sys.exit(f"no such part: {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    if is_available() and not shutil.which("kubectl"):
        prepare()
    # kustomize reads the secrets: the local overlay cannot be built without them.
    run([ROOT / "deploy/overlays/local/secrets.sh", BIN])
    figures = []

    def part(name, what):
        start = time.monotonic()
        print(f"=== {name}", flush=True)
        try:
            lines = what()
        except Exception as error:
            if not isinstance(error, Failed):
                traceback.print_exc()
            print(f"=== {name}: FAILED after {seconds_since(start)} s: {error}", flush=True)
            raise SystemExit(1) from error
        for line in lines:
            print(f"    {line}", flush=True)
        figures.append(f"{name}: {seconds_since(start)} s")

    on_cluster = [name for name in PARTS if name in wanted and name not in ("secrets.sh", "manifests", "chart", "image")]
    if "secrets.sh" in wanted:
        part("secrets.sh", k8s_secrets.script)
    if "manifests" in wanted:
        if shutil.which("kubectl"):
            part("manifests", k8s_manifests.without_cluster)
        else:
            print(not_run("kubernetes: manifests", "there is neither kubectl nor a cluster that includes it"))
    if "chart" in wanted:
        part("chart", lambda: PARTS["chart"](None))
    if not on_cluster and "image" not in wanted:
        return 0
    # The cluster's parts run this image.
    if why := k8s_image.skip_reason():
        print(not_run("kubernetes: image", why))
        if on_cluster:
            print(not_run("kubernetes: cluster", "there is no image to run"))
        return 0
    with tempfile.TemporaryDirectory(prefix="ordermesh-image-") as folder:
        archive = []

        def image():
            path, summary = k8s_image.build(folder)
            archive.append(path)
            return [summary]

        part("image", image)
        if on_cluster and not is_available():
            print(not_run("kubernetes: cluster", f"{NO_CLUSTER} (so not {', '.join(on_cluster)})"))
        elif on_cluster:
            start = time.monotonic()
            with cluster() as running:
                running.import_image(archive[0])
                running.load_third_parties(HERE / "bin/jaeger")
                figures.append(f"cluster up, images loaded: {seconds_since(start)} s")
                for name in on_cluster:
                    part(name, lambda what=PARTS[name]: what(running))
    print("times:", *figures, sep="\n    ")
    return 0


if __name__ == "__main__":
    if not BIN.exists() and sys.argv[1:] != ["prepare"]:
        sys.exit(f"there is no {BIN.relative_to(ROOT) if BIN.is_relative_to(ROOT) else BIN}: cargo build --release")
    try:
        sys.exit(main())
    except Failed as failure:
        sys.exit(f"FAILED: {failure}")
