"""A real Kubernetes, and kubectl on it: a kind cluster (KIND_CLUSTER names it), or one that the scripts of K8S_TOOLS create (default:
../shared/k8s beside the repository)."""

import contextlib
import json
import os
import re
import select
import subprocess
import tempfile
import time
from pathlib import Path

from system import ROOT, Failed, eventually

TOOLS = Path(os.environ.get("K8S_TOOLS", ROOT.parent / "shared/k8s")).resolve()
HOME = Path(os.environ.get("K8S_HOME", "/tmp/k8s"))
KIND = os.environ.get("KIND_CLUSTER", "")
NAMESPACE = "ordermesh"
PROGRAM_IMAGE = "docker.io/library/ordermesh:0.2.0"
POSTGRES_IMAGE = "localhost/postgres:15"
JAEGER_IMAGE = "localhost/jaeger:2.13.0"


def run(command, seconds=120, text=None, env=None, check=True):
    """Runs a command and returns its standard output; raises Failed with its output when it fails."""
    done = subprocess.run(
        [str(part) for part in command], input=text, capture_output=True, text=True, timeout=seconds, check=False,
        env={**os.environ, **(env or {})})
    if check and done.returncode != 0:
        raise Failed(f"{' '.join(map(str, command))} ended with {done.returncode}:\n{done.stdout[-2000:]}{done.stderr[-4000:]}")
    return done.stdout


class Cluster:
    """kubectl on a cluster whose kubeconfig is known, in our namespace."""

    def __init__(self):
        self.env = {}

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        if kind:
            with contextlib.suppress(Failed, subprocess.TimeoutExpired):
                print("--- pods and the last events of the cluster:", self.kubectl("get", "pods", "-o", "wide", check=False),
                      *self.kubectl("get", "events", "--sort-by=.lastTimestamp", check=False).splitlines()[-15:], "---", sep="\n")

    def ctr(self, *args):
        """Runs containerd's client on the node that runs our pods."""
        raise NotImplementedError

    def kubectl(self, *args, text=None, seconds=120, check=True):
        """Runs kubectl in the namespace; returns its output."""
        return run(["kubectl", "--namespace", NAMESPACE, *args], seconds=seconds, text=text, env=self.env, check=check)

    def get(self, *args):
        """The JSON of `kubectl get`."""
        return json.loads(self.kubectl("get", *args, "-o", "json"))

    def pods(self, service):
        """The running pods of a service that are not terminating, oldest first."""
        found = self.get("pods", "-l", f"app.kubernetes.io/name={service}")["items"]
        alive = [pod for pod in found if "deletionTimestamp" not in pod["metadata"] and pod["status"].get("phase") == "Running"]
        return sorted(alive, key=lambda pod: pod["metadata"]["creationTimestamp"])

    def wait_for_rollout(self, *what, seconds=300):
        """Waits until the rollout of each of these is complete."""
        for each in what:
            self.kubectl("rollout", "status", each, f"--timeout={seconds}s", seconds=seconds + 10)

    def kill(self, pod):
        """Sends SIGKILL to a pod's process; returns when kubelet has restarted it."""
        def container():
            return self.get("pod", pod)["status"]["containerStatuses"][0]
        before = container()
        name = before["containerID"].removeprefix("containerd://")
        self.ctr("tasks", "kill", "--signal", "SIGKILL", name)
        eventually(f"{pod} is restarted", 60, lambda: container()["restartCount"] > before["restartCount"])

    def logs(self, pod, *args):
        return self.kubectl("logs", pod, *args, check=False)

    @contextlib.contextmanager
    def forward(self, target, port):
        """Forwards a local port to a pod through the API server, with `kubectl port-forward`."""
        with tempfile.TemporaryFile() as errors:
            forward = subprocess.Popen(
                ["kubectl", "--namespace", NAMESPACE, "port-forward", target, f":{port}"], env={**os.environ, **self.env},
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors, text=True)
            try:
                answered, _, _ = select.select([forward.stdout], [], [], 30)
                line = forward.stdout.readline() if answered else "no answer within 30 s"
                found = re.search(r"127\.0\.0\.1:(\d+)", line)
                if not found:
                    errors.seek(0)
                    raise Failed(f"port-forward to {target}: {line}{errors.read().decode()}")
                yield int(found.group(1))
            finally:
                forward.kill()
                forward.wait()

    def job(self, manifest, seconds):
        """Creates a Job and waits until its pod has started; returns its name."""
        name = json.loads(self.kubectl("create", "-f", "-", "-o", "json", text=json.dumps(manifest)))["metadata"]["name"]
        eventually(f"the pod of {name} runs", seconds, lambda: self.job_pod(name))
        return name

    def job_pod(self, name):
        found = self.get("pods", "-l", f"batch.kubernetes.io/job-name={name}")["items"]
        started = [pod for pod in found if pod["status"].get("phase") in ("Running", "Succeeded", "Failed")]
        return started[0]["metadata"]["name"] if started else None

    def wait_for_job(self, name, seconds):
        """(whether it succeeded, its log), once it has ended."""
        def conditions():
            status = self.get("job", name)["status"]
            return [each["type"] for each in status.get("conditions", []) if each["status"] == "True" and each["type"] in ("Complete", "Failed")]
        ended = eventually(f"{name} ends", seconds, conditions)
        return "Complete" in ended, self.logs(self.job_pod(name))

    def memory(self):
        """The measurements of `kubectl top`: {pod: MiB}."""
        lines = self.kubectl("top", "pods", "--no-headers", check=False).splitlines()
        return {line.split()[0]: int(line.split()[2].removesuffix("Mi")) for line in lines if line.strip()}


class Kind(Cluster):
    """An existing kind cluster of one node, KIND_CLUSTER; KUBECONFIG leads to it. It stays, with our namespace, for a look at it."""

    def __init__(self, name):
        super().__init__()
        self.name = name
        self.env = {"KUBECONFIG": os.environ.get("KUBECONFIG", str(Path.home() / ".kube/config"))}

    def ctr(self, *args):
        run(["docker", "exec", f"{self.name}-control-plane", "ctr", "-n", "k8s.io", *args], env=self.env)

    def import_image(self, archive):
        run(["kind", "load", "image-archive", archive, "--name", self.name], seconds=300, env=self.env)

    def load_third_parties(self, _jaeger):
        """Loads PostgreSQL and Jaeger from their registries, under the names of .ci/k8s."""
        for source, image in (("postgres:15", POSTGRES_IMAGE), ("jaegertracing/jaeger:2.13.0", JAEGER_IMAGE)):
            run(["docker", "pull", "--quiet", source], seconds=900)
            run(["docker", "tag", source, image])
            run(["kind", "load", "docker-image", image, "--name", self.name], seconds=300, env=self.env)


class EphemeralCluster(Cluster):
    """A cluster that K8S_TOOLS creates, and removes at the end unless KEEP_CLUSTER is set."""

    def __enter__(self):
        self.env = {"K8S_HOME": str(HOME), "PATH": f"{HOME / 'bin'}:{os.environ['PATH']}"}
        # The first build takes minutes; later runs reuse the programs.
        out = run([TOOLS / "up.sh"], seconds=1800, env=self.env)
        self.env["KUBECONFIG"] = out.strip().splitlines()[-1]
        return self

    def __exit__(self, kind, *rest):
        super().__exit__(kind, *rest)
        if "KEEP_CLUSTER" not in os.environ:
            run([TOOLS / "down.sh"], env=self.env)

    def ctr(self, *args):
        run(["ctr", "-a", HOME / "run/containerd.sock", "-n", "k8s.io", *args])

    def import_image(self, archive):
        """Imports an image from a file written by buildah."""
        self.ctr("images", "import", archive)

    def load_third_parties(self, jaeger):
        """Loads PostgreSQL (Debian's) and Jaeger (built from source): images cannot be pulled here."""
        run([TOOLS / "postgres-image.sh", POSTGRES_IMAGE], seconds=900, env=self.env)
        run([TOOLS / "load-image.sh", jaeger, JAEGER_IMAGE], env=self.env)


def seconds_since(start):
    return round(time.monotonic() - start, 1)


def is_available():
    """Whether there is a cluster, or one can be created."""
    return bool(KIND) or (TOOLS / "up.sh").exists()


def cluster():
    return Kind(KIND) if KIND else EphemeralCluster()


NO_CLUSTER = f"there is no kind cluster (KIND_CLUSTER), and the scripts that create one are not in {TOOLS} (K8S_TOOLS)"
