"""The parts of k8s.py on the cluster, one function each. Each returns report lines to print."""

import base64
import copy
import json
import os
import re
import subprocess
import tempfile
import time
from datetime import datetime

import yaml

import k8s_orders
from k8s_cluster import NAMESPACE, seconds_since
from k8s_orders import Load
from system import ROOT, check, eventually

SERVICES = ("user", "order", "payment", "data")
DEPLOYMENTS = (*SERVICES, "gateway")
# Orders a second: two cores run the whole cluster and the load.
RATE = 15


def apply(cluster):
    """Applies the local overlay with one command, and waits until every pod is ready."""
    start = time.monotonic()
    cluster.kubectl("apply", "-k", ROOT / ".ci/k8s")
    eventually("two ready pods of each service, and the rest", 300, lambda: all_ready(cluster))
    took = seconds_since(start)
    pods = cluster.get("pods")["items"]
    restarts = sum(status["restartCount"] for pod in pods for status in pod["status"]["containerStatuses"])
    eventually("the autoscalers have metrics", 60, lambda: all(
        autoscaler["status"].get("currentMetrics") for autoscaler in cluster.get("hpa")["items"]))
    return [f"kubectl apply to {len(pods)} pods ready: {took} s, {restarts} restarts", f"memory idle: {memory(cluster)}"]


def is_ready(pod):
    return any(each["type"] == "Ready" and each["status"] == "True" for each in pod["status"].get("conditions", []))


def ready_pods(cluster, service):
    return [pod["metadata"]["name"] for pod in cluster.pods(service) if is_ready(pod)]


def all_ready(cluster):
    pods = cluster.get("pods")["items"]
    return all(map(is_ready, pods)) and all(len(ready_pods(cluster, each)) == 2 for each in DEPLOYMENTS) and len(pods) >= 13


def memory(cluster):
    """Memory in MiB by service, for each of its pods."""
    measured = eventually("kubectl top lists every pod", 60, lambda: (
        lambda top: top if all(any(pod.startswith(f"{name}-") for pod in top) for name in DEPLOYMENTS) else None)(cluster.memory()))
    kinds = (*DEPLOYMENTS, "postgres", "collector", "jaeger")
    return ", ".join(f"{kind} {'/'.join(str(mib) for pod, mib in sorted(measured.items()) if pod.startswith(kind + '-'))}" for kind in kinds) + " MiB"


def missing_secrets(cluster):
    """For each service and each Secret: a pod without that Secret must exit with an error that names it, and must not hang."""
    cases = []
    for service in SERVICES:
        template = cluster.get("deployment", service)["spec"]["template"]
        secrets = {volume["secret"]["secretName"] for volume in template["spec"]["volumes"] if "secret" in volume} - {"database-ca"}
        cases += [(service, template, secret) for secret in sorted(secrets | {"database"})]
    names = {}
    for service, template, secret in cases:
        name = f"without-{service}-{secret}"
        names[name] = (service, secret)
        cluster.kubectl("create", "-f", "-", text=json.dumps(pod_without_secret(template, secret, name)))
    report = []
    try:
        for name, (service, secret) in names.items():
            def phase(name=name):
                status = cluster.get("pod", name)["status"]
                check("CreateContainerConfigError" not in json.dumps(status), f"{name} does not hang: {status}")
                return status["phase"] in ("Failed", "Succeeded") and status["phase"]
            ended = eventually(f"{name} ends", 60, phase)
            last = error_of(cluster.logs(name))
            # The error names the Secret or its mount path.
            words = {"database": ["database"], "signing-keys": ["signing key"], "operator": ["operator"], "gateway-api-key": ["gateway/api-key"]}
            check(ended == "Failed" and any(word in last.lower() for word in words.get(secret, ["/tls/"])), f"{name} fails and names the Secret: {ended}, {last}")
            report.append(f"{service} without {secret}: {last}")
    finally:
        cluster.kubectl("delete", "pod", *names, "--grace-period=0", "--force", "--ignore-not-found", check=False)
    return report


def error_of(log):
    """The error with which a program exited: its line and those of its causes."""
    at = log.rfind("error: ")
    return " ".join(log[at:].split()) if at >= 0 else f"(no error) {log[-300:]}"


def pod_without_secret(template, secret, name):
    """A pod from a Deployment's template with one Secret missing, without restarts; no Service selects it."""
    spec = copy.deepcopy(template["spec"])
    spec["restartPolicy"] = "Never"
    # It must not displace other pods on the node.
    for field in ("topologySpreadConstraints", "priorityClassName"):
        spec.pop(field, None)
    spec["containers"][0]["resources"] = {"requests": {"cpu": "1m", "memory": "1Mi"}, "limits": spec["containers"][0]["resources"]["limits"]}
    for volume in spec["volumes"]:
        if volume.get("secret", {}).get("secretName") == secret:
            volume["secret"]["secretName"] = "absent"
    for variable in spec["containers"][0]["env"]:
        reference = variable.get("valueFrom", {}).get("secretKeyRef", {})
        if reference.get("name") == secret:
            reference["name"] = "absent"
    labels = {"app.kubernetes.io/name": "without", "app.kubernetes.io/component": "service"}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": NAMESPACE, "labels": labels}, "spec": spec}


def order(cluster):
    """One order with grpcurl, and its trace."""
    return [k8s_orders.order_by_hand(cluster)]


def network_policies(cluster):
    """The NetworkPolicies are enforced: a pod with unknown labels has no access (the other parts show that Jobs such as `load` have)."""
    manifest = k8s_orders.job("load", "--no-verify", "--orders=1")
    for labels in (manifest["metadata"]["labels"], manifest["spec"]["template"]["metadata"]["labels"]):
        labels["app.kubernetes.io/component"] = labels["app.kubernetes.io/name"] = "unknown"
    succeeded, log = cluster.wait_for_job(cluster.job(manifest, 60), 120)
    check(not succeeded, f"a pod with unknown labels has no access:\n{log}")
    check(re.search(r"UNAVAILABLE|DEADLINE|Unavailable|Deadline|unreachable|timed out", log), f"a pod with unknown labels gets a connection error:\n{log}")
    return [f"a pod with unknown labels reaches no service: {error_of(log)}"]


TRAFFIC = """
rules:
- matches: [{ method: { service: data.v1.CatalogService, method: BatchGetProducts } }]
  timeouts: { request: 1s }
  ordermesh: { fault: { percent: 50, delay: 50ms } }
"""


def traffic_policy(cluster):
    """The ConfigMap of the traffic policy, edited under load: every pod follows it without a restart, and rejects a broken one."""
    email, password = base64.b64decode(cluster.get("secret", "operator")["data"]["operator"]).decode().split()
    with cluster.forward("service/user", 7000) as user:
        login = k8s_orders.call(user, "user.v1.UserService/Login", {"email": email, "password": password})[0]
    bearer = f"authorization: Bearer {login['session']['accessToken']}"
    before = {name: ready_pods(cluster, name) for name in SERVICES}
    edits = 0

    def edit(text):
        nonlocal edits
        edits += 1
        cluster.kubectl("patch", "configmap", "traffic-policy", "--type=merge", "-p", json.dumps({"data": {"policy.yaml": text}}))
        # The kubelet looks at a pod's ConfigMaps when the pod changes, else about once a minute.
        cluster.kubectl("annotate", "pods", "--selector=app.kubernetes.io/component=service", "--overwrite", f"ordermesh.example/edit={edits}")

    def states():
        found = []
        for pod in (pod for pods in before.values() for pod in pods):
            with cluster.forward(f"pod/{pod}", 7000) as port:
                found.append(k8s_orders.call(port, "mesh.v1.MeshAdminService/GetSnapshot", {}, bearer)[0].get("trafficPolicy", {}))
        return found

    def all_pods(is_so):
        return all(is_so(state) for state in states())

    with Load(cluster, "a traffic policy edited", RATE, 90) as load:
        start = time.monotonic()
        edit(TRAFFIC)
        eventually("every pod has the rule", 85, lambda: all_pods(lambda state: state.get("ruleCount") == 1 and not state.get("refusal")))
        took = seconds_since(start)
        check_load_is_running(load)
    edit(TRAFFIC + "- nothing\n")
    eventually("every pod rejects the broken file", 120, lambda: all_pods(lambda state: "line " in state.get("refusal", "")))
    check(all_pods(lambda state: state.get("ruleCount") == 1), "the previous policy stays in force")
    edit("rules: []\n")
    check(all(set(pods) <= set(ready_pods(cluster, name)) for name, pods in before.items()), "no pod was restarted")
    return [load.report.summary(), f"in force at {sum(map(len, before.values()))} pods after {took} s; a broken file is rejected by all of them"]


def migrate(cluster):
    """The component's Job, on a database whose schemas already exist."""
    manifest = next(each for each in yaml.safe_load_all((ROOT / "deploy/components/migrate/job.yaml").read_text()) if each["kind"] == "Job")
    settings = cluster.get("deployment", "order")["spec"]["template"]["spec"]["containers"][0]["envFrom"]
    manifest["metadata"]["namespace"] = NAMESPACE
    spec = manifest["spec"]["template"]["spec"]
    del spec["serviceAccountName"]
    for container in spec["containers"]:
        container["envFrom"] = settings
    start = time.monotonic()
    cluster.kubectl("create", "-f", "-", text=json.dumps(manifest))
    cluster.kubectl("wait", "job/migrate", "--for=condition=Complete", "--timeout=90s")
    took = seconds_since(start)
    cluster.kubectl("delete", "job", "migrate")
    return [f"the migrate Job completes in {took} s"]


def delete_and_kill_pods(cluster):
    """Under load deletes a pod of each service in turn; then kills a process of each with SIGKILL, without a drain."""
    times = []
    with Load(cluster, "a pod of each service deleted", RATE, 45) as load:
        for service in DEPLOYMENTS:
            victim = ready_pods(cluster, service)[0]
            start = time.monotonic()
            cluster.kubectl("delete", "pod", victim, "--wait=false")
            eventually(f"{service} has two ready pods again", 60, lambda: len(two := ready_pods(cluster, service)) == 2 and victim not in two)
            times.append(f"{service} {seconds_since(start)} s")
        check_load_is_running(load)
    report = [f"deleted: {load.report.summary()}", f"two ready pods again after: {', '.join(times)}"]
    # Without log-ins: one in flight in a killed process is lost, and must not be retried for the customer.
    with Load(cluster, "a process of each service killed", RATE, 75, logins=0) as load:
        for service in DEPLOYMENTS:
            cluster.kill(ready_pods(cluster, service)[0])
            eventually(f"{service} has two ready pods again", 60, lambda: len(ready_pods(cluster, service)) == 2)
        check_load_is_running(load)
    return [*report, f"killed with -9: {load.report.summary()}"]


def check_load_is_running(load):
    """Checks that the load was still running."""
    check("active" in str(load.cluster.get("job", load.name)["status"]), f"{load.what}: the load is still running (else make it longer)")


def rolling_update(cluster):
    """A rolling update of every Deployment under load, then a rollback of Order."""
    times = []
    with Load(cluster, "a rolling update of every Deployment", RATE, 180) as load:
        for name in DEPLOYMENTS:
            start = time.monotonic()
            cluster.kubectl("rollout", "restart", f"deployment/{name}")
            cluster.wait_for_rollout(f"deployment/{name}")
            times.append(f"{name} {seconds_since(start)} s")
        start = time.monotonic()
        cluster.kubectl("rollout", "undo", "deployment/order")
        cluster.wait_for_rollout("deployment/order")
        times.append(f"order rolled back {seconds_since(start)} s")
        check_load_is_running(load)
    return [load.report.summary(), f"rolled out: {', '.join(times)}"]


def scale(cluster):
    """Scales Order to three pods: the new one serves calls. Back to two: the removed one drains."""
    with Load(cluster, "Order to three pods and back", RATE, 75) as load:
        before = set(ready_pods(cluster, "order"))
        set_replica_bounds(cluster, 3)
        eventually("a third ready pod", 60, lambda: len(ready_pods(cluster, "order")) == 3)
        new = next(pod for pod in cluster.pods("order") if pod["metadata"]["name"] not in before)
        name = new["metadata"]["name"]
        became = next(each["lastTransitionTime"] for each in new["status"]["conditions"] if each["type"] == "Ready")
        ready_at = datetime.fromisoformat(became.replace("Z", "+00:00")).timestamp()
        with cluster.forward("service/jaeger", 16686) as jaeger:
            first = eventually("a call at the new pod is in Jaeger", 40, lambda: first_call(jaeger, name))
        loaded = memory(cluster)
        with tempfile.TemporaryFile("w+") as log:
            follow = subprocess.Popen(
                ["kubectl", "-n", NAMESPACE, "logs", "--follow", "--prefix", "--tail=1", "-l", "app.kubernetes.io/name=order"],
                env={**os.environ, **cluster.env}, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT)
            try:
                running = {pod["metadata"]["name"] for pod in cluster.pods("order")}
                set_replica_bounds(cluster, 2)

                def gone():
                    left = {pod["metadata"]["name"] for pod in cluster.get("pods", "-l", "app.kubernetes.io/name=order")["items"]}
                    return (running - left) or None
                start = time.monotonic()
                removed = eventually("one pod is gone", 90, gone).pop()
                took = seconds_since(start)
            finally:
                follow.terminate()
                follow.wait()
            log.seek(0)
            lines = [line for line in log if removed in line]
        check(any("has ended" in line for line in lines), f"{removed} drained and logged it: {lines[-10:]}")
        check(not any("did not end in time" in line for line in lines), f"{removed} ended in time: {lines[-10:]}")
        check_load_is_running(load)
    wait = first - ready_at
    check(wait <= 10, f"the new pod serves its first call within 10 s of being ready: {wait:.1f} s")
    return [load.report.summary(), f"{name}: first call {wait:+.1f} s from its Ready (whole seconds)", f"{removed}: drained and gone {took} s "
            "after the autoscaler's bounds changed", f"memory under load ({RATE} orders/s): {loaded}"]


def set_replica_bounds(cluster, replicas):
    """Sets the autoscaler's bounds: it owns the number of pods, not the Deployment."""
    cluster.kubectl("patch", "hpa", "order", "--type=merge", "-p", json.dumps({"spec": {"minReplicas": min(replicas, 3), "maxReplicas": replicas}}))


def first_call(jaeger, instance):
    """The start of the first call in Jaeger that an instance of Order served; None if there is none yet."""
    tags = '%7B%22service.instance.id%22%3A%22' + instance + '%22%7D'
    found = k8s_orders.query(jaeger, f"/api/traces?service=order&lookback=1h&limit=500&tags={tags}")
    begins = [span["begins"] for each in found for span in k8s_orders.spans_of(each) if span["instance"] == instance and span["kind"] == "server"]
    return min(begins, default=None)


def verify(cluster):
    """Checks the promises after all other parts."""
    succeeded, log = cluster.wait_for_job(cluster.job(k8s_orders.job("verify"), 60), 180)
    check(succeeded and len(re.findall(r"\bkept\b", log)) == 4, f"verify is clean:\n{log}")
    return [line for line in log.splitlines() if "kept" in line]
