#!/usr/bin/env python3
"""The contract against the manifests: who may call whom, and what the public may call. Needs kubectl (for kustomize) and PyYAML
(.ci/tools.sh yaml).

The NetworkPolicies of an overlay are evaluated as Kubernetes does it: an edge is there when the caller's egress and the called
one's ingress both allow it. What has to be there is worked out from proto/. Run alone: it checks both overlays.
"""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT / ".ci/bin/yaml"))

import yaml  # noqa: E402

GRPC = 7000
SERVICES = ("user", "order", "payment", "data")


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


def allowed(policies, direction, pod, peer, port):
    """May `pod` take (Ingress) or make (Egress) a connection? Default is deny: a pod that no policy selects is an error."""
    rules_of, peers_of = ("ingress", "from") if direction == "Ingress" else ("egress", "to")
    mine = [p["spec"] for p in policies if direction in p["spec"]["policyTypes"] and selects(p["spec"]["podSelector"], pod)]
    if not mine:
        raise ValueError(f"{pod}: no policy denies {direction} by default")
    for rule in (rule for spec in mine for rule in spec.get(rules_of) or []):
        ports = [each["port"] for each in rule.get("ports") or []]
        if ports and port not in ports:
            continue
        for each in rule.get(peers_of) or [{"podSelector": {}}]:
            # A rule for other namespaces, or for addresses, is about nobody of ours.
            if "podSelector" in each and "namespaceSelector" not in each and selects(each["podSelector"], peer):
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
    return []


if __name__ == "__main__":
    problems = check() + sees_differences()
    print("\n".join(problems) or "policies and routes are what the contract says")
    sys.exit(1 if problems else 0)
