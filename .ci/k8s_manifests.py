#!/usr/bin/env python3
"""The manifests: schemas (kubeconform), good practice (kube-score), NetworkPolicies against the contract, and the API server's admission.

Run directly it needs no cluster, and skips the API server.
"""

import glob
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

sys.dont_write_bytecode = True
sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.append(str(Path(__file__).resolve().parent / "bin/yaml"))

import yaml  # noqa: E402

import k8s_policies  # noqa: E402
from k8s_cluster import run  # noqa: E402
from system import ROOT, Failed, check  # noqa: E402

BIN = ROOT / ".ci/bin"
PRODUCTION = "deploy/overlays/production"
OVERLAYS = ("deploy/overlays/local", PRODUCTION)
# Components that the production overlay lists as comments: each alone, and together where one patches the other.
MIGRATE, CLOUDNATIVE_PG, TOOLS = "deploy/components/migrate", "deploy/components/cloudnative-pg", "deploy/components/cloudnative-pg/tools"
MONITORING = "deploy/components/monitoring"
COMPONENTS = ((MONITORING,), (MIGRATE,), (CLOUDNATIVE_PG,), (MIGRATE, CLOUDNATIVE_PG), ("deploy/collector/opensearch",), ("deploy/collector/logs",))
VERIFY = f"{PRODUCTION}/verify"
JOBS = ("deploy/jobs/load", "deploy/jobs/verify", VERIFY)

# Accepted findings of kube-score: (check, name of the object or None for all, why). An unused exception is an error: remove it.
EXCEPTIONS = (
    ("container-image-pull-policy", None, "images are named by version, in production by digest: a cached image is the right one, and a registry "
     "outage prevents no pod from starting"),
    ("container-resources", None, "no CPU limit: throttling in the middle of a call only adds latency; CPU requests share a full node fairly"),
    ("container-security-context-user-group-id", "postgres", "999 is the user of the official image, and the owner of the data on its volume"),
    ("deployment-strategy", "collector", "two concurrent collectors would each see half of a trace"),
    ("deployment-replicas", "collector", "tail sampling needs all spans of a trace in one place"),
    ("deployment-replicas", "jaeger", "its traces are in memory"),
    ("networkpolicy-targets-pod", "tools", "its pods are Jobs that an administrator starts by hand (deploy/jobs)"),
)

# Third-party kinds: their schemas, for kubeconform and for the API server's dry run, from their Go modules.
CRDS = {
    "sigs.k8s.io/gateway-api@v1.4.1": ("h1:NPxFutNkKNa8UfLd2CMlEuhIPMQgDQ6DXNKG9sHbJU8=", "config/crd/standard/*_{grpcroutes,backendtlspolicies}.yaml"),
    "github.com/cert-manager/cert-manager@v1.19.1": ("h1:Txh8L/nLWTDcb7ZnXuXbTe15BxQnLbLirXmbNk0fGgY=", "deploy/crds/cert-manager.io_{issuers,certificates}.yaml"),
    "github.com/cloudnative-pg/cloudnative-pg@v1.27.1": ("h1:w+bbtXyEPoaa7sZGXxbb8qJ+/bUGWQ3M48kbNUEpKlk=", "config/crd/bases/postgresql.cnpg.io_clusters.yaml"),
    "github.com/prometheus-operator/prometheus-operator@v0.85.0": (
        "h1:M5xLCLEoaW2IJfnuCwFzzpL+jSVQu3KGT84Pye+fW8s=", "example/prometheus-operator-crd/monitoring.coreos.com_{servicemonitors,prometheusrules}.yaml"),
}


def variants():
    """{name: YAML} of everything that an administrator applies."""
    found = {folder: run(["kubectl", "kustomize", ROOT / folder]) for folder in (*OVERLAYS, *JOBS)}
    for components in COMPONENTS:
        found[" + ".join((PRODUCTION, *components))] = with_components(PRODUCTION, components)
    found[f"{VERIFY} + {TOOLS}"] = with_components(VERIFY, (TOOLS,))
    return found


def with_components(folder, components):
    """An overlay as built with some of its commented components enabled."""
    lines, place = (ROOT / folder / "kustomization.yaml").read_text().splitlines(), ROOT / ".ci/k8s/variant"
    for component in components:
        comment = f"  # - {os.path.relpath(ROOT / component, ROOT / folder)} "
        at = next((at for at, line in enumerate(lines) if line.startswith(comment)), None)
        check(at is not None, f"{folder}/kustomization.yaml names {component} as a comment")
        lines[at] = comment.replace("# ", "")
    overlay = yaml.safe_load("\n".join(lines))
    for kind in ("resources", "components"):
        overlay[kind] = [os.path.relpath(ROOT / folder / each, place) if each.startswith("..") else each for each in overlay[kind]]
    shutil.rmtree(place, ignore_errors=True)  # left by a killed run
    place.mkdir(parents=True)
    try:
        for file in (ROOT / folder).iterdir():
            if file.is_file():
                shutil.copy(file, place)
        (place / "kustomization.yaml").write_text(json.dumps(overlay))
        return run(["kubectl", "kustomize", place])
    finally:
        shutil.rmtree(place)


def database_urls(texts):
    """With CloudNativePG no container uses the Secret `database`, which does not exist; without it those of the services do. `verify` reaches its database."""
    wrong = []
    for name, text in texts.items():
        objects = [each for each in yaml.safe_load_all(text) if each]
        asked = {}
        for each in objects:
            if each["kind"] in ("Deployment", "Job"):
                spec = each["spec"]["template"]["spec"]
                for container in [*spec.get("initContainers", []), *spec["containers"]]:
                    secrets = {variable["valueFrom"]["secretKeyRef"]["name"] for variable in container.get("env", [])
                               if "secretKeyRef" in variable.get("valueFrom", {})}
                    if secrets:
                        asked[f"{each['metadata']['name']}/{container['name']}"] = secrets - {"jaeger-opensearch"}
        wanted = {"postgres-app"} if CLOUDNATIVE_PG in name else {"database"}
        wrong += [f"{name}: {who} has its URL from {secrets}" for who, secrets in asked.items() if secrets and secrets != wanted]
        migrations = sum(who.startswith("migrate/") for who in asked)
        if migrations != (4 if MIGRATE in name else 0):
            wrong.append(f"{name}: {migrations} containers migrate")
        if name.startswith(f"{PRODUCTION} + ") and CLOUDNATIVE_PG in name:
            job = list(yaml.safe_load_all(texts[f"{VERIFY} + {TOOLS}"]))
            wrong += [f"{name}: {problem}" for problem in k8s_policies.problems_of_job(objects, job)]
            if any(each["kind"] == "NetworkPolicy" and each["metadata"]["name"] == "egress-database" for each in objects):
                wrong.append(f"{name}: the NetworkPolicy egress-database still opens addresses that are not needed")
    check(not wrong, "\n".join(["each variant has its URLs from the right Secret:", *wrong]))
    return [f"{len(texts)} variants: each takes its URLs from the one Secret that exists"]


def single_stack(objects):
    """Problems of objects that assume IPv4: they would fail on IPv6-only clusters, and ignore one family on dual-stack ones."""
    for each in objects:
        name = f"{each['kind']} {each['metadata']['name']}"
        if each["kind"] == "Service" and each["spec"].get("ipFamilyPolicy") != "PreferDualStack":
            yield f"{name} is not dual-stack"
        if each["kind"] == "NetworkPolicy":
            for rule in (rule for part in ("ingress", "egress") for rule in each["spec"].get(part) or []):
                blocks = [peer["ipBlock"]["cidr"] for peer in [*rule.get("from", []), *rule.get("to", [])] if "ipBlock" in peer]
                if blocks and len({":" in block for block in blocks}) != 2:
                    yield f"{name} is for {blocks} alone"
        elif re.search(r"(?<![\d.])0\.0\.0\.0(?![/\d])", json.dumps(each)):
            yield f"{name} listens on 0.0.0.0"


def dual_stack(texts):
    """Every variant supports IPv4 and IPv6."""
    wrong = [f"{name}: {problem}" for name, text in texts.items() for problem in single_stack([each for each in yaml.safe_load_all(text) if each])]
    check(not wrong, "\n".join(["each variant supports IPv4 and IPv6:", *wrong]))
    # Control case: each kind of problem is detected.
    block = {"to": [{"ipBlock": {"cidr": "0.0.0.0/0"}}]}
    bad = [{"kind": "Service", "metadata": {"name": "a"}, "spec": {}}, {"kind": "NetworkPolicy", "metadata": {"name": "b"}, "spec": {"egress": [block]}},
           {"kind": "ConfigMap", "metadata": {"name": "c"}, "data": {"ORDERMESH_LISTEN": "0.0.0.0:7000"}}]
    check(len(list(single_stack(bad))) == 3, "objects for a single IP family are detected")
    return [f"{len(texts)} variants: Services, policies and listeners are for both families"]


def crd_files():
    """The files of CRDS, one custom kind each."""
    for module, (pinned, pattern) in CRDS.items():
        answer = json.loads(run(["go", "mod", "download", "-json", module], seconds=600, env={"GOFLAGS": ""}))
        check(answer["Sum"] == pinned, f"{module} has the pinned hash {pinned}: {answer['Sum']}")
        before, _, rest = pattern.partition("{")
        names, _, after = rest.partition("}")
        wanted = [f"{before}{name}{after}" for name in names.split(",")] if names else [pattern]
        for one in wanted:
            files = glob.glob(f"{answer['Dir']}/{one}")
            check(len(files) == 1, f"{module} has {one}: {files}")
            yield Path(files[0])


def strict(schema):
    """A custom kind's schema that rejects unknown fields, as the API server does with --warnings-as-errors."""
    if isinstance(schema, list):
        return [strict(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    found = {key: strict(value) for key, value in schema.items()}
    if isinstance(found.get("properties"), dict) and found.get("type") == "object" and not found.get("x-kubernetes-preserve-unknown-fields"):
        found.setdefault("additionalProperties", False)
    return found


def schemas(texts):
    """kubeconform, strict and offline."""
    report = []
    with tempfile.TemporaryDirectory() as folder:
        for file in crd_files():
            crd = next(each for each in yaml.load_all(file.read_text(), Loader=yaml.CSafeLoader) if each)["spec"]
            for version in crd["versions"]:
                schema = strict(version["schema"]["openAPIV3Schema"])
                schema["properties"]["metadata"] = {"type": "object"}
                name = f"{crd['names']['kind']}-{crd['group'].split('.')[0]}-{version['name']}.json".lower()
                (Path(folder) / name).write_text(json.dumps(schema))
        for name, text in texts.items():
            locations = [word for at in (BIN / "schemas", folder) for word in ("-schema-location", f"{at}/{{{{.ResourceKind}}}}{{{{.KindSuffix}}}}.json")]
            out = run([BIN / "kubeconform", "-strict", "-summary", *locations, "-"], text=text)
            report.append(f"{name}: {out.strip().splitlines()[-1]}")
    return report


def scores():
    """kube-score, with EXCEPTIONS."""
    used, wrong, graded = set(), [], 0
    for name in OVERLAYS:
        text = run(["kubectl", "kustomize", ROOT / name])
        done = subprocess.run([BIN / "kube-score", "score", "--output-format", "json", "-"], input=text, capture_output=True, text=True, check=False)
        for thing in json.loads(done.stdout):
            for each in thing["checks"]:
                graded += 1
                if each["skipped"] or each["grade"] > 5:
                    continue
                which = (each["check"]["id"], thing["object_meta"]["name"])
                excepted = {rule[:2] for rule in EXCEPTIONS} & {which, (which[0], None)}
                used |= excepted
                if not excepted:
                    comments = "; ".join(comment["summary"] for comment in each["comments"] or [])
                    wrong.append(f"{name}: {thing['type_meta']['kind']} {which[1]}: {which[0]}: {comments}")
    for check_id, name, _ in EXCEPTIONS:
        if (check_id, name) not in used:
            wrong.append(f"the exception ({check_id}, {name}) is not needed any more")
    check(not wrong, "\n".join(["kube-score finds nothing:", *wrong]))
    return [f"kube-score: {graded} checks, {len(EXCEPTIONS)} exceptions, each needed and with its reason"]


def without_cluster():
    """All checks that need no API server."""
    texts = variants()
    report = [*schemas(texts), *database_urls(texts), *dual_stack(texts), *scores()]
    problems = k8s_policies.check() + k8s_policies.check_control_cases()
    check(not problems, "\n".join(["no problems of policies:", *problems]))
    run([BIN / "hadolint", ROOT / "deploy/Dockerfile"])
    return [*report, "hadolint: clean"]


def install_crds(cluster):
    """Installs the custom kinds, so that the API server accepts them."""
    for file in crd_files():
        run(["kubectl", "apply", "--server-side", "-f", file], env=cluster.env)
    run(["kubectl", "wait", "crd", "--all", "--for=condition=Established", "--timeout=60s"], env=cluster.env)


def dry_run(cluster):
    """The real API server admits every variant, custom kinds included. This needs the namespace."""
    install_crds(cluster)
    report = []
    for name, text in variants().items():
        objects = [each for each in yaml.safe_load_all(text) if each]
        first = [each for each in objects if each["kind"] in ("Namespace", "PriorityClass")]
        if first:
            run(["kubectl", "apply", "--server-side", "-f", "-"], text=yaml.safe_dump_all(first), env=cluster.env)
        out = run(["kubectl", "apply", "--server-side", "--dry-run=server", "--warnings-as-errors", "-f", "-"], text=text, env=cluster.env)
        report.append(f"dry run of {name}: {len(out.strip().splitlines())} objects")
    return report


if __name__ == "__main__":
    try:
        print("\n".join(without_cluster()))
    except Failed as failure:
        sys.exit(f"FAILED: {failure}")
