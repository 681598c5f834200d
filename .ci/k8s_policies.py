#!/usr/bin/env python3
"""The contract against the manifests: who may call whom, and what the public may call. Needs kubectl (for kustomize) and PyYAML
(.ci/tools.sh yaml).

The NetworkPolicies of an overlay are evaluated as Kubernetes does it: an edge is there when the caller's egress and the called
one's ingress both allow it. What has to be there is worked out from proto/. The Job `verify` reads every store and the gateway's
ledger: it has to reach all of them, in both overlays. Run alone: it checks both overlays.
"""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT / ".ci/bin/yaml"))

import yaml  # noqa: E402

GRPC = 7000
POSTGRES = 5432
SERVICES = ("user", "order", "payment", "data")
GATEWAY = "ORDERMESH_PAYMENT_GATEWAY_ADDRESSES"
# Who is asked by whom besides our own pods: what is outside of the cluster, and its DNS.
OUTSIDE = "an address outside of the cluster"
OURS = {"kubernetes.io/metadata.name": "ordermesh"}
DNS = {"k8s-app": "kube-dns"}
DNS_NAMESPACE = {"kubernetes.io/metadata.name": "kube-system"}
# The Jobs that run beside an overlay: `verify` first. `load` is for trying out, and has none in production.
JOBS = {
    "deploy/overlays/local": ("deploy/jobs/verify", "deploy/jobs/load"),
    "deploy/overlays/production": ("deploy/overlays/production/verify",),
}


def methods():
    """[(package, service, method, [access], [caller])] of every rpc."""
    found = []
    for path in sorted((ROOT / "proto").glob("*/v1/*.proto")):
        text = re.sub(r"//[^\n]*", "", path.read_text(encoding="utf-8"))
        package = re.search(r"^package ([\w.]+);", text, re.M).group(1)
        for service, body in re.findall(r"^service (\w+) \{(.*?)^\}", text, re.M | re.S):
            for method, rest in re.findall(r"\brpc (\w+)\((.*?)(?=\brpc |\Z)", body, re.S):
                callers = re.search(r"callers: \[(.*?)\]", rest, re.S)
                access = re.findall(r"ACCESS_(\w+)", rest)
                if not access:
                    sys.exit(f"{package}.{service}/{method}: no access is found in {path}: has the form of the files changed?")
                found.append((package, service, method, access, re.findall(r'"(\w+)"', callers.group(1)) if callers else []))
    return found


def wanted_edges(contract, with_gateway):
    """Who calls whom: the contract's `callers`, and the calls to PUBLIC methods that services make."""
    edges = {(caller, package.split(".")[0]) for package, _, _, _, callers in contract for caller in callers}
    public = {f"{package}.{service}/{method}" for package, service, method, access, _ in contract if "PUBLIC" in access}
    for calls, method, called in (
        # Who verifies access tokens fetches the keys; the User Service has them.
        (("order", "payment", "data"), "user.v1.UserService/ListSigningKeys", "user"),
        (("order",), "data.v1.CatalogService/BatchGetProducts", "data"),
        (("payment",) if with_gateway else (), "gateway.v1.PaymentGatewayService/CreateCharge", "gateway"),
    ):
        if method not in public:
            sys.exit(f"{method} is no PUBLIC method any more: who calls it now?")
        edges |= {(caller, called) for caller in calls}
    return edges


def built(folder):
    """The objects of an overlay, as kustomize builds it."""
    done = subprocess.run(["kubectl", "kustomize", str(ROOT / folder)], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"{folder}: {done.stderr.strip()}")
    return [document for document in yaml.safe_load_all(done.stdout) if document]


def selects(selector, labels):
    """Does a label selector select a pod with these labels? Unknown operators are an error, not a no."""
    for key, value in (selector.get("matchLabels") or {}).items():
        if labels.get(key) != value:
            return False
    for need in selector.get("matchExpressions") or []:
        if need["operator"] != "In":
            raise ValueError(f"operator {need['operator']} is not known here")
        if labels.get(need["key"]) not in need["values"]:
            return False
    return True


def is_peer(rule, peer, namespace):
    """Is a pod, or what is outside, meant by one entry of `from` or `to`?"""
    if peer == OUTSIDE:
        # Which addresses is for each to SET: that there are some is what can be seen here.
        return "ipBlock" in rule
    if "ipBlock" in rule:
        return False
    # Without a selector of namespaces it is about the policy's own.
    if not selects(rule.get("namespaceSelector") or {}, namespace) or ("namespaceSelector" not in rule and namespace != OURS):
        return False
    return selects(rule.get("podSelector") or {}, peer)


def allowed(policies, direction, pod, peer, port, namespace=OURS):
    """May `pod` take (Ingress) or make (Egress) a connection? Default is deny: a pod that no policy selects is an error.
    A peer in another namespace is told by that one's labels."""
    rules_of, peers_of = ("ingress", "from") if direction == "Ingress" else ("egress", "to")
    mine = [p["spec"] for p in policies if direction in p["spec"]["policyTypes"] and selects(p["spec"]["podSelector"], pod)]
    if not mine:
        raise ValueError(f"{pod}: no policy denies {direction} by default")
    for rule in (rule for spec in mine for rule in spec.get(rules_of) or []):
        ports = [each["port"] for each in rule.get("ports") or []]
        if ports and port not in ports:
            continue
        if not rule.get(peers_of) or any(is_peer(each, peer, namespace) for each in rule[peers_of]):
            return True
    return False


def edges(objects, names):
    """Every pair of pods of which the first may call the second."""
    policies = [each for each in objects if each["kind"] == "NetworkPolicy"]
    pods = {}
    for each in objects:
        if each["kind"] == "Deployment" and each["metadata"]["name"] in names:
            pods[each["metadata"]["name"]] = each["spec"]["template"]["metadata"]["labels"]
    if set(pods) != set(names):
        raise ValueError(f"Deployments {sorted(pods)} instead of {sorted(names)}")
    return {
        (caller, called) for caller in pods for called in pods
        if allowed(policies, "Egress", pods[caller], pods[called], GRPC) and allowed(policies, "Ingress", pods[called], pods[caller], GRPC)}


def template_of(objects, kind, name=None):
    """The pods of a workload, as they are made; None when there is no such workload."""
    found = [each["spec"]["template"] for each in objects if each["kind"] == kind and name in (None, each["metadata"]["name"])]
    return found[0] if found else None


def gateway_of(objects):
    """The gateway's address in the services' settings."""
    return next(each["data"][GATEWAY] for each in objects if each["kind"] == "ConfigMap" and GATEWAY in each.get("data", {}))


def database_of(objects):
    """The labels of PostgreSQL's pods where they are ours, or OUTSIDE."""
    if any(each["kind"] == "Cluster" for each in objects):
        return {"cnpg.io/cluster": "postgres"}
    ours = template_of(objects, "StatefulSet", "postgres")
    return ours["metadata"]["labels"] if ours else OUTSIDE


def unreachable(objects, job):
    """What a Job of the tools may not reach and has to, as lines; and what is not as in the overlay that it belongs to."""
    policies = [each for each in objects if each["kind"] == "NetworkPolicy"]
    template = template_of(job, "Job")
    pod, gateway = template["metadata"]["labels"], gateway_of(objects)
    mock = template_of(objects, "Deployment", "gateway")
    peers = {name: (template_of(objects, "Deployment", name)["metadata"]["labels"], GRPC) for name in SERVICES}
    peers["the database"] = (database_of(objects), POSTGRES)
    peers["the gateway"] = (mock["metadata"]["labels"] if mock else OUTSIDE, int(gateway.rsplit(":", 1)[1]))
    wrong = [name for name, (peer, port) in peers.items() if not (
        allowed(policies, "Egress", pod, peer, port) and (peer == OUTSIDE or allowed(policies, "Ingress", peer, pod, port)))]
    if not allowed(policies, "Egress", pod, DNS, 53, DNS_NAMESPACE):
        wrong.append("DNS")
    wrong = [f"the Job {pod['app.kubernetes.io/name']} may not reach {name}" for name in wrong]
    container = template["spec"]["containers"][0]
    its = {each["name"]: each.get("value") for each in container["env"]}
    if its[GATEWAY] != gateway:
        wrong.append(f"the Job's gateway is {its[GATEWAY]}, and the services' is {gateway}")
    # The recommended URL names a file there.
    if "/etc/ordermesh/database-ca" not in {each["mountPath"] for each in container["volumeMounts"]}:
        wrong.append("the Job does not have the database's CA")
    ours = template_of(objects, "Deployment", "order")["spec"]["containers"][0]["image"]
    if container["image"] != ours:
        wrong.append(f"the Job's image is {container['image']}, and the services' is {ours}")
    return wrong


def outside_gateway(objects):
    """Who may reach a gateway that is not in the cluster, of the services."""
    policies, port = [each for each in objects if each["kind"] == "NetworkPolicy"], int(gateway_of(objects).rsplit(":", 1)[1])
    return {(name, "the gateway") for name in SERVICES
            if allowed(policies, "Egress", template_of(objects, "Deployment", name)["metadata"]["labels"], OUTSIDE, port)}


def difference(what, wanted, there):
    """Lines that tell what is missing and what is too much."""
    return [f"{what}: missing {each}" for each in sorted(wanted - there)] + [f"{what}: too much {each}" for each in sorted(there - wanted)]


def check():
    """What differs; empty when all is well. Prints what was compared."""
    contract = methods()
    wrong = []
    for folder, names in (("deploy/overlays/local", (*SERVICES, "gateway")), ("deploy/overlays/production", SERVICES)):
        objects = built(folder)
        wanted = wanted_edges(contract, "gateway" in names)
        wrong += difference(f"{folder}, NetworkPolicies", wanted, edges(objects, names))
        print(f"{folder}: {len(wanted)} edges of {len(names)}x{len(names)} pods compared with the contract")
        for job in JOBS[folder]:
            wrong += [f"{folder}, {job}: {problem}" for problem in unreachable(objects, built(job))]
            print(f"{folder}: {job} reaches {', '.join(SERVICES)}, database, gateway and DNS")
        if "gateway" not in names:
            wrong += difference(f"{folder}, egress", {("payment", "the gateway")}, outside_gateway(objects))
    routes = [each for each in objects if each["kind"] == "GRPCRoute"]
    routed = set()
    for route in routes:
        for rule in route["spec"]["rules"]:
            for backend in rule["backendRefs"]:
                routed |= {(backend["name"], match["method"]["service"], match["method"]["method"]) for match in rule["matches"]}
    public = {
        (package.split(".")[0], f"{package}.{service}", method) for package, service, method, access, _ in contract
        if package.split(".")[0] in SERVICES and {"PUBLIC", "CUSTOMER"} & set(access)}
    wrong += difference("deploy/components/gateway-api, GRPCRoute", public, routed)
    print(f"deploy/components/gateway-api: {len(public)} of {len(contract)} methods are public, and routed")
    return wrong


def sees_differences():
    """The check is no check when it cannot fail: each kind of policy taken away, or opened, must be seen."""
    objects = built("deploy/base")
    wanted = wanted_edges(methods(), False)
    for name in SERVICES:
        without = [each for each in objects if not (each["kind"] == "NetworkPolicy" and each["metadata"]["name"] == name)]
        if edges(without, SERVICES) == wanted:
            return [f"the policy {name} can be taken away, and this check does not see it"]
    everybody = {"kind": "NetworkPolicy", "spec": {
        "podSelector": {}, "policyTypes": ["Ingress", "Egress"], "ingress": [{}], "egress": [{}]}}
    if len(edges([*objects, everybody], SERVICES)) != len(SERVICES) ** 2:
        return ["a policy that opens everything is not seen as that"]
    for folder, jobs in JOBS.items():
        objects, job = built(folder), built(jobs[0])
        # Without it the tools miss what the policy opens.
        for name in ("tools", "from-tools", "egress-database", "egress-dns", "to-gateway"):
            without = [each for each in objects if not (each["kind"] == "NetworkPolicy" and each["metadata"]["name"] == name)]
            if not unreachable(without, job):
                return [f"{folder}: the policy {name} can be taken away, and nobody sees that {jobs[0]} reaches less"]
    if not unreachable(built("deploy/overlays/production"), built("deploy/jobs/verify")):
        return ["the local overlay's Job is not seen to be wrong in production"]
    return []


if __name__ == "__main__":
    problems = check() + sees_differences()
    print("\n".join(problems) or "policies and routes are what the contract says")
    sys.exit(1 if problems else 0)
