#!/usr/bin/env python3
"""Compares the contract with the manifests: the permitted callers of each service, and the methods for clients (access public or
customer). Needs kubectl (for kustomize), PyYAML (.ci/tools.sh yaml) and the program.

The NetworkPolicies of an overlay are evaluated as by Kubernetes: an edge exists when the caller's egress and the callee's
ingress both allow it. The expected edges are derived from `ordermesh policies`. The Job `verify` reads every store and the gateway's
ledger: it must reach all of them, in both overlays. Run as a script, this file checks both overlays.
"""

import json
import subprocess
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parent / "bin/yaml"))

import yaml  # noqa: E402

from system import BIN, ROOT  # noqa: E402

GRPC = 7000
POSTGRES = 5432
SERVICES = ("user", "order", "payment", "data")
GATEWAY = "ORDERMESH_PAYMENT_GATEWAY_ADDRESSES"
# Peers other than our own pods: addresses outside of the cluster, and its DNS.
OUTSIDE = "an address outside of the cluster"
OWN_NAMESPACE = {"kubernetes.io/metadata.name": "ordermesh"}
DNS = {"k8s-app": "kube-dns"}
DNS_NAMESPACE = {"kubernetes.io/metadata.name": "kube-system"}
# The Jobs that run beside an overlay: `verify` first. `load` is for trials, and does not run in production.
JOBS = {
    "deploy/overlays/local": ("deploy/jobs/verify", "deploy/jobs/load"),
    "deploy/overlays/production": ("deploy/overlays/production/verify",),
}


def methods():
    """Every rpc's policy: see `ordermesh policies --help`."""
    done = subprocess.run([BIN, "policies", "--output", "json"], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def wanted_edges(contract, with_gateway):
    """The (caller, callee) pairs: the contract's `callers`, and the services' calls of public methods."""
    edges = {(caller, rpc["service"]) for rpc in contract for caller in rpc["callers"]}
    public = {rpc["method"] for rpc in contract if "public" in rpc["access"]}
    for callers, method, callee in (
        # Services that verify access tokens fetch the keys; the User Service has them locally.
        (("order", "payment", "data"), "user.v1.UserService/ListSigningKeys", "user"),
        (("order",), "data.v1.CatalogService/BatchGetProducts", "data"),
        (("payment",) if with_gateway else (), "gateway.v1.PaymentGatewayService/CreateCharge", "gateway"),
    ):
        if method not in public:
            sys.exit(f"{method} is no longer a public method: update its callers here")
        edges |= {(caller, callee) for caller in callers}
    return edges


def kustomized(folder):
    """The objects of an overlay, built by kustomize."""
    done = subprocess.run(["kubectl", "kustomize", str(ROOT / folder)], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"{folder}: {done.stderr.strip()}")
    return [document for document in yaml.safe_load_all(done.stdout) if document]


def selects(selector, labels):
    """Whether a label selector selects a pod with these labels. Unknown operators are an error, not a mismatch."""
    for key, value in (selector.get("matchLabels") or {}).items():
        if labels.get(key) != value:
            return False
    for need in selector.get("matchExpressions") or []:
        if need["operator"] != "In":
            raise ValueError(f"operator {need['operator']} is not supported here")
        if labels.get(need["key"]) not in need["values"]:
            return False
    return True


def is_peer(rule, peer, namespace):
    """Whether one entry of `from` or `to` matches a pod, or OUTSIDE."""
    if peer == OUTSIDE:
        # The administrator sets the addresses (marked SET in the manifests): only their presence can be checked here.
        return "ipBlock" in rule
    if "ipBlock" in rule:
        return False
    # Without a namespaceSelector it applies to the policy's own namespace.
    if not selects(rule.get("namespaceSelector") or {}, namespace) or ("namespaceSelector" not in rule and namespace != OWN_NAMESPACE):
        return False
    return selects(rule.get("podSelector") or {}, peer)


def allowed(policies, direction, pod, peer, port, namespace=OWN_NAMESPACE):
    """Whether `pod` may accept (Ingress) or open (Egress) a connection. A pod that no NetworkPolicy selects is an error:
    Kubernetes would allow it everything. A peer in another namespace is identified by that namespace's labels."""
    rules_of, peers_of = ("ingress", "from") if direction == "Ingress" else ("egress", "to")
    mine = [p["spec"] for p in policies if direction in p["spec"]["policyTypes"] and selects(p["spec"]["podSelector"], pod)]
    if not mine:
        raise ValueError(f"{pod}: no NetworkPolicy denies {direction} by default")
    for rule in (rule for spec in mine for rule in spec.get(rules_of) or []):
        ports = [each["port"] for each in rule.get("ports") or []]
        if ports and port not in ports:
            continue
        if not rule.get(peers_of) or any(is_peer(each, peer, namespace) for each in rule[peers_of]):
            return True
    return False


def edges(objects, names):
    """Every (caller, callee) pair that the NetworkPolicies allow."""
    policies = [each for each in objects if each["kind"] == "NetworkPolicy"]
    pods = {}
    for each in objects:
        if each["kind"] == "Deployment" and each["metadata"]["name"] in names:
            pods[each["metadata"]["name"]] = each["spec"]["template"]["metadata"]["labels"]
    if set(pods) != set(names):
        raise ValueError(f"Deployments {sorted(pods)} instead of {sorted(names)}")
    return {
        (caller, callee) for caller in pods for callee in pods
        if allowed(policies, "Egress", pods[caller], pods[callee], GRPC) and allowed(policies, "Ingress", pods[callee], pods[caller], GRPC)}


def template_of(objects, kind, name=None):
    """The pod template of a workload; None if there is no such workload."""
    found = [each["spec"]["template"] for each in objects if each["kind"] == kind and name in (None, each["metadata"]["name"])]
    return found[0] if found else None


def gateway_of(objects):
    """The gateway's address in the services' settings."""
    return next(each["data"][GATEWAY] for each in objects if each["kind"] == "ConfigMap" and GATEWAY in each.get("data", {}))


def database_of(objects):
    """The labels of PostgreSQL's pods if they are in the overlay, or OUTSIDE."""
    if any(each["kind"] == "Cluster" for each in objects):
        return {"cnpg.io/cluster": "postgres"}
    ours = template_of(objects, "StatefulSet", "postgres")
    return ours["metadata"]["labels"] if ours else OUTSIDE


def problems_of_job(objects, job):
    """Problems of a tools Job, as lines: peers that it cannot reach, and differences from the overlay that it belongs to."""
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
    wrong = [f"the Job {pod['app.kubernetes.io/name']} cannot reach {name}" for name in wrong]
    container = template["spec"]["containers"][0]
    its = {each["name"]: each.get("value") for each in container["env"]}
    if its[GATEWAY] != gateway:
        wrong.append(f"the Job's gateway is {its[GATEWAY]}, and the services' is {gateway}")
    # The recommended URL refers to a file there.
    if "/etc/ordermesh/database-ca" not in {each["mountPath"] for each in container["volumeMounts"]}:
        wrong.append("the Job does not have the database's CA")
    ours = template_of(objects, "Deployment", "order")["spec"]["containers"][0]["image"]
    if container["image"] != ours:
        wrong.append(f"the Job's image is {container['image']}, and the services' is {ours}")
    return wrong


def outside_gateway(objects):
    """The services that may reach a gateway outside of the cluster."""
    policies, port = [each for each in objects if each["kind"] == "NetworkPolicy"], int(gateway_of(objects).rsplit(":", 1)[1])
    return {(name, "the gateway") for name in SERVICES
            if allowed(policies, "Egress", template_of(objects, "Deployment", name)["metadata"]["labels"], OUTSIDE, port)}


def difference(what, wanted, found):
    """Lines with the missing and the extra elements."""
    return [f"{what}: missing {each}" for each in sorted(wanted - found)] + [f"{what}: extra {each}" for each in sorted(found - wanted)]


def check():
    """The differences, empty if there are none. Prints what was compared."""
    contract = methods()
    wrong = []
    for folder, names in (("deploy/overlays/local", (*SERVICES, "gateway")), ("deploy/overlays/production", SERVICES)):
        objects = kustomized(folder)
        wanted = wanted_edges(contract, "gateway" in names)
        wrong += difference(f"{folder}, NetworkPolicies", wanted, edges(objects, names))
        print(f"{folder}: {len(wanted)} edges of {len(names)}x{len(names)} pods compared with the contract")
        for job in JOBS[folder]:
            wrong += [f"{folder}, {job}: {problem}" for problem in problems_of_job(objects, kustomized(job))]
            print(f"{folder}: {job} reaches {', '.join(SERVICES)}, database, gateway and DNS")
        if "gateway" not in names:
            wrong += difference(f"{folder}, egress", {("payment", "the gateway")}, outside_gateway(objects))
    routes = [each for each in objects if each["kind"] == "GRPCRoute"]
    routed = set()
    for route in routes:
        for rule in route["spec"]["rules"]:
            for backend in rule["backendRefs"]:
                routed |= {(backend["name"], f'{match["method"]["service"]}/{match["method"]["method"]}') for match in rule["matches"]}
    for_clients = {(rpc["service"], rpc["method"]) for rpc in contract if rpc["service"] in SERVICES and {"public", "customer"} & set(rpc["access"])}
    wrong += difference("deploy/components/gateway-api, GRPCRoute", for_clients, routed)
    print(f"deploy/components/gateway-api: {len(for_clients)} of {len(contract)} methods are for clients, and routed")
    return wrong


def check_control_cases():
    """Control cases: each kind of NetworkPolicy removed, or opened, must be detected."""
    objects = kustomized("deploy/base")
    wanted = wanted_edges(methods(), False)
    for name in SERVICES:
        without = [each for each in objects if not (each["kind"] == "NetworkPolicy" and each["metadata"]["name"] == name)]
        if edges(without, SERVICES) == wanted:
            return [f"the check does not detect that the NetworkPolicy {name} is removed"]
    allow_all = {"kind": "NetworkPolicy", "spec": {
        "podSelector": {}, "policyTypes": ["Ingress", "Egress"], "ingress": [{}], "egress": [{}]}}
    if len(edges([*objects, allow_all], SERVICES)) != len(SERVICES) ** 2:
        return ["the check does not detect a NetworkPolicy that allows everything"]
    for folder, jobs in JOBS.items():
        objects, job = kustomized(folder), kustomized(jobs[0])
        # Without it the tools lose the access that the policy grants.
        for name in ("tools", "from-tools", "egress-database", "egress-dns", "to-gateway"):
            without = [each for each in objects if not (each["kind"] == "NetworkPolicy" and each["metadata"]["name"] == name)]
            if not problems_of_job(without, job):
                return [f"{folder}: the check does not detect that without the NetworkPolicy {name} {jobs[0]} reaches less"]
    if not problems_of_job(kustomized("deploy/overlays/production"), kustomized("deploy/jobs/verify")):
        return ["the check does not detect that the local overlay's Job is wrong in production"]
    return []


if __name__ == "__main__":
    problems = check() + check_control_cases()
    print("\n".join(problems) or "NetworkPolicies and routes match the contract")
    sys.exit(1 if problems else 0)
