#!/usr/bin/env python3
"""What deploy/ offers beside the manifests: the compose file, checked and run without Docker, and the Helm chart, compared with deploy/base.

    .ci/packages.py [PART...]

.ci/operations.py runs `compose` and `compose-run`, .ci/k8s.py runs `chart`.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.dont_write_bytecode = True
sys.path.insert(0, str(HERE))
sys.path.append(str(HERE / "bin/yaml"))

from system import BIN, OFFSETS, ROOT, check, free_port_base, free_ports, not_run, prepare_process, run_named  # noqa: E402

TOOLS = {"compose": "compose-spec", "compose-run": "compose-spec", "chart": "kubeconform schemas helm"}
if __name__ == "__main__":
    # Before the imports, because PyYAML is one of the tools. Of the others those of the parts: helm takes minutes to compile, once.
    subprocess.run([HERE / "tools.sh", "yaml", *" ".join(TOOLS.get(name, "") for name in sys.argv[1:] or TOOLS).split()], check=True)

import yaml  # noqa: E402

import k8s_manifests  # noqa: E402
import postgres  # noqa: E402
from k8s_cluster import run  # noqa: E402
from program import Program  # noqa: E402

COMPOSE, BASE, CHART = ROOT / "deploy/compose.yaml", ROOT / "deploy/base", ROOT / "deploy/helm/ordermesh"
IMAGE = "ordermesh:0.2.0"
# The user of the image.
USER = 65532


# --- deploy/compose.yaml

def compose_services():
    """The services as Docker Compose's own parser reads them: it checks the schema of the compose specification, but not what they refer to."""
    model = json.loads(run(["env", "-C", COMPOSE.parent, "compose-spec", "--format=json", COMPOSE]))
    services, wrong = model["services"], []
    for name, service in services.items():
        volumes = {mount["source"] for mount in service.get("volumes", []) if mount["type"] == "volume"}
        wrong += [f"{name}: there is no {other}" for other in (volumes - model["volumes"].keys()) | (service.get("depends_on", {}).keys() - services.keys())]
        wrong += [f"{name}: {other} has no health check" for other, how in service.get("depends_on", {}).items()
                  if how["condition"] == "service_healthy" and "healthcheck" not in services.get(other, {})]
        wrong += [f"{name}: there is no {source}" for source in mounts(service).values() if not source.is_file()]
    check(not wrong, "\n".join(["files, volumes, dependencies and health checks exist:", *wrong]))
    return services


def mounts(service):
    """{path in the container: file of the repository}"""
    return {mount["target"]: Path(mount["source"]) for mount in service.get("volumes", []) if mount["type"] == "bind"}


def program_problems(name, service):
    """Flags and variables that this command of the program does not have."""
    command = service["command"]
    text = run([BIN, command[0], "--help"])
    telemetry = re.findall(r"^\| `(OTEL_\w+)` \| supported", (ROOT / "services/telemetry/README.md").read_text(), re.M)
    known = {*re.findall(r"\[env: (\w+)", text), *telemetry}
    yield from (f"{name}: `ordermesh {command[0]}` has no variable {variable}" for variable in service.get("environment", {}) if variable not in known)
    yield from (f"{name}: `ordermesh {command[0]}` has no {flag}" for flag in command[1:] if flag.startswith("--") and f"{flag} " not in text)
    yield from (f"{name}: it has its own {key}" for key in ("entrypoint", "user") if service.get(key))


def address_problems(services, scrape, source):
    """Addresses of containers, in settings, Prometheus's targets and Grafana's data source, that do not exist: (all addresses, problems)."""
    names = {alias: name for name, service in services.items() for network in (service.get("networks") or {}).values() for alias in (network or {}).get("aliases", [])}
    names |= {name: name for name in services}
    asked = {value for service in services.values() for value in service.get("environment", {}).values() if value and re.search(r"://.+:\d+", value)}
    asked |= {target for job in scrape["scrape_configs"] for config in job["static_configs"] for target in config["targets"]} | {source["url"]}
    addresses, wrong = sorted({re.search(r"([\w.]+):(\d+)(/\w*)?$", address).groups()[:2] for address in asked}), []
    for host, port in addresses:
        other = services.get(names.get(host), {})
        # Published, PostgreSQL's, or the default of a variable in a mounted file.
        listens = {str(each["target"]) for each in other.get("ports", [])} | ({"5432"} if host == "postgres" else set())
        listens |= {found for file in mounts(other).values() for found in re.findall(r":-[^}]*?(\d{4,5})\}", file.read_text())}
        if port not in listens:
            wrong.append(f"{host}:{port}: {f'{names[host]} listens on {sorted(listens)}' if other else 'there is no such container'}")
    return addresses, wrong


def compose():
    """deploy/compose.yaml: its schema, commands and variables, images, ports, addresses, mounted files; Grafana's and Prometheus's parts fit together."""
    services = compose_services()
    wrong = []

    # The program's settings; ports as in README.md.
    rows = re.findall(r"^\| (\w+) \| ([\d, ]+) \| `", (ROOT / "README.md").read_text(), re.M)
    ours = {name: service for name, service in services.items() if service["image"] == IMAGE}
    check({name for name, _ in rows} | {"certs"} == ours.keys(), f"each service of README.md, and certs, runs the program: {sorted(ours)}")
    for name, service in ours.items():
        wrong += program_problems(name, service)
    for name, ports in rows:
        first = int(ports.split(",")[0])
        published = {int(port["published"]): port["target"] for port in services[name]["ports"]}
        if published != {first: 7000, first + 1000: 8000}:
            wrong.append(f"{name}: README.md has the port {first}, here {published}")
    for name, service in services.items():
        wrong += [f"{name}: port {port['published']} is open to other machines" for port in service.get("ports", []) if port.get("host_ip") != "127.0.0.1"]

    # Images: a version each, that of the manifests if they have it.
    texts = [file.read_text() for folder in ("base", "overlays/local", "collector") for file in (ROOT / "deploy" / folder).glob("*.yaml")]
    tags = dict(image.split(":") for text in texts for image in re.findall(r"^ *image: (\S+)$", text, re.M))
    for name, service in services.items():
        repository, _, tag = service["image"].partition(":")
        if not re.search(r"\d+\.\d+", tag) or tag != tags.get(repository, tag):
            wrong.append(f"{name}: its image is {service['image']}, in the manifests {tags.get(repository)}")

    # Prometheus and Grafana find their files, and each other.
    prometheus, grafana = mounts(services["prometheus"]), mounts(services["grafana"])
    scrape = yaml.safe_load(prometheus["/etc/prometheus/prometheus.yml"].read_text())
    source = yaml.safe_load(grafana["/etc/grafana/provisioning/datasources/ordermesh.yaml"].read_text())["datasources"][0]
    addresses, problems = address_problems(services, scrape, source)
    wrong += problems
    dashboard = json.loads(grafana["/etc/grafana/dashboards/ordermesh.json"].read_text())
    variable = next(each for each in dashboard["templating"]["list"] if each["name"] == "datasource")
    provider = yaml.safe_load(grafana["/etc/grafana/provisioning/dashboards/ordermesh.yaml"].read_text())["providers"][0]
    facts = {
        "Prometheus has the rules": {f"/etc/prometheus/{file}" for file in scrape["rule_files"]} <= prometheus.keys(),
        "the data source is the one of the dashboard's variable": source["type"] == variable["query"] and source["isDefault"],
        "the data source has Prometheus's interval": source["jsonData"]["timeInterval"] == scrape["global"]["scrape_interval"],
        "the provider's folder has the dashboard": provider["options"]["path"] == "/etc/grafana/dashboards",
        "the dashboard is the home page": services["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"] in grafana,
    }
    wrong += [f"not true: {fact}" for fact, is_true in facts.items() if not is_true]
    check(len(addresses) >= 9, f"the addresses are found: {sorted(addresses)}")
    check(not wrong, "\n".join(["the compose file has no problems:", *wrong]))
    return f"{len(services)} containers, {len(ours)} of the program, {len(addresses)} addresses"


def compose_run():
    """The commands of deploy/compose.yaml as processes of this machine, with its settings but for ports and folders: an order succeeds, and one more after another `up`."""
    if why := postgres.skip_reason():
        return why
    services = compose_services()
    running = [name for name, service in services.items() if service["image"] == IMAGE and name != "certs"]
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ordermesh-compose-")))
        (folder / "secrets").mkdir()
        settings = dict(word.split("=") for word in services["postgres"]["command"] if "=" in word)
        server = stack.enter_context(postgres.Postgres(postgres.postgres_programs(), settings))
        own = services["postgres"]["environment"]
        server.sql(f"CREATE ROLE {own['POSTGRES_USER']} SUPERUSER LOGIN PASSWORD '{own['POSTGRES_PASSWORD']}'")
        server.sql(f"CREATE DATABASE {own['POSTGRES_DB']} OWNER {own['POSTGRES_USER']}")
        base, closed = free_port_base(1), free_ports(1)[0]
        grpc = {name: base + OFFSETS[name] + 1 for name in running}
        admin = {name: port + 1000 for name, port in grpc.items()}

        # As root it is the image's user that has to read the files; otherwise all of them belong to the one user there is.
        is_root = os.geteuid() == 0
        program = shutil.copy(BIN, folder / "ordermesh")
        folder.chmod(0o755)
        as_user = ["setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups"] if is_root else []
        path = {"PATH": os.environ["PATH"] if is_root else f"{folder / 'stub'}:{os.environ['PATH']}"}
        (folder / "stub").mkdir()
        (folder / "stub/chown").symlink_to("/bin/true")

        def here(text, name):
            """A text of a container with the addresses and folders of this machine."""
            changes = {"/secrets": str(folder / "secrets"), "@postgres:5432": f"@127.0.0.1:{server.port}", "collector:4317": f"127.0.0.1:{closed}",
                       "--host=127.0.0.1": f"--host=127.0.0.1 --port={server.port}"}
            if name in running:
                changes |= {"[::]:7000": f"127.0.0.1:{grpc[name]}", "[::]:8000": f"127.0.0.1:{admin[name]}"}
            changes |= {f"dns:///{each}:7000": f"dns:///127.0.0.1:{grpc[each]}" for each in running}
            for before, after in changes.items():
                text = text.replace(before, after)
            return text

        def command(name):
            return [here(word, name) for word in services[name]["command"]]

        def up():
            """What each `up` runs until its end, in the sequence of depends_on."""
            check(services["certs"]["depends_on"].keys() == {"secrets"}, "certs depends on secrets")
            check(all(services[name]["depends_on"].keys() == {"certs", "postgres"} for name in running), "the services depend on both")
            run(command("secrets"), env=path)
            run([*as_user, program, *command("certs")], env=path)
            run([server.programs / services["postgres"]["healthcheck"]["test"][1], *here(" ".join(services["postgres"]["healthcheck"]["test"][2:]), "").split()])

        def demo():
            """As in deploy/README.md, but for the ports: the volume's files are in the folder."""
            place = ["--port-base", base, "--data-dir", folder / "secrets"]
            return run([*as_user, program, "demo", "--only", "success", "--tls", *place]).strip().splitlines()[-1]

        up()
        for name in running:
            # A low bcrypt cost: log-ins are not under test.
            env = {"ORDERMESH_USER_BCRYPT_COST": "4"} | {variable: here(value, name) for variable, value in services[name]["environment"].items()}
            stack.enter_context(Program([*as_user, str(program), *command(name)], env, f"http://127.0.0.1:{admin[name]}/readyz", folder / f"{name}.log"))
        first = demo()
        password = (folder / "secrets/operator.txt").read_text()
        up()
        check((folder / "secrets/operator.txt").read_text() == password, "another `up` keeps the operator's password")
        demo()
        return first


# --- deploy/helm

# What the chart has in another way than deploy/base: (how to make a pair of objects equal, why). One that changes no object is an error.
def without_helm_labels(_base, chart):
    for label in ("helm.sh/chart", "app.kubernetes.io/instance", "app.kubernetes.io/managed-by"):
        chart["metadata"]["labels"].pop(label, None)


def without_hash(base, _chart):
    base["metadata"]["name"] = re.sub(r"^settings-\w{10}$", "settings", base["metadata"]["name"])
    for container in containers(base):
        for source in container.get("envFrom", []):
            source["configMapRef"]["name"] = re.sub(r"^settings-\w{10}$", "settings", source["configMapRef"]["name"])


def without_checksum(_base, chart):
    pod = chart["spec"]["template"]["metadata"] if chart["kind"] == "Deployment" else {}
    if len(pod.get("annotations", {}).get("checksum/settings", "")) == 64:
        pod.pop("annotations")


def parsed_policy(base, chart):
    for each in (base, chart):
        if each["metadata"]["name"] == "traffic-policy":
            each["data"]["policy.yaml"] = yaml.safe_load(each["data"]["policy.yaml"])


DIFFERENCES = (
    (without_helm_labels, "Helm's own labels"),
    (without_hash, "kustomize puts a hash of the settings into the ConfigMap's name, so that a change rolls the pods"),
    (without_checksum, "the chart has it in an annotation"),
    (parsed_policy, "the chart renders a value: the comments are in deploy/base alone"),
)
# Objects of deploy/base that the chart lacks.
MISSING = {("Namespace", "ordermesh"): "`helm install --create-namespace`, with the labels of deploy/README.md"}


def containers(thing):
    return thing["spec"]["template"]["spec"]["containers"] if thing["kind"] == "Deployment" else []


def helm(*args, fails=False, chart=CHART):
    """`helm COMMAND` for the chart: its output, or its error."""
    done = subprocess.run(["helm", args[0], *(["ordermesh"] if args[0] == "template" else []), chart, "--namespace", "ordermesh", "--kube-version", "1.35", *args[1:]],
                          capture_output=True, text=True, timeout=120, check=False)
    check((done.returncode != 0) == fails, f"`helm {' '.join(map(str, args))}` {'fails' if fails else 'succeeds'}:\n{done.stdout[-2000:]}{done.stderr[-4000:]}")
    return done.stderr if fails else done.stdout


def objects(text):
    return [each for each in yaml.safe_load_all(text) if each]


def differences(base, chart):
    """The problems of the chart's objects compared with those of deploy/base, and the DIFFERENCES that were needed."""
    needed, wrong = set(), []

    def key(each):
        return each["kind"], re.sub(r"^settings-\w{10}$", "settings", each["metadata"]["name"])

    ones, others = {key(each): each for each in base}, {key(each): each for each in chart}
    for name in sorted(ones.keys() | others.keys()):
        if name in ones and name in others:
            for change, _ in DIFFERENCES:
                before = json.dumps([ones[name], others[name]])
                change(ones[name], others[name])
                if json.dumps([ones[name], others[name]]) != before:
                    needed.add(change)
            if ones[name] != others[name]:
                sides = [yaml.safe_dump(each).splitlines() for each in (ones[name], others[name])]
                wrong += [f"{' '.join(name)}: {line}" for line in sorted(set(sides[0]) ^ set(sides[1]))] or [f"{' '.join(name)}: another sequence"]
        elif name in others or name not in MISSING:
            wrong.append(f"{' '.join(name)}: only in {'deploy/base' if name in ones else 'the chart'}")
    return wrong, needed


def leaves(values, path=""):
    """(path of --set, value) of every value, down to the first list or empty map."""
    for name, value in values.items():
        if isinstance(value, dict) and value:
            yield from leaves(value, f"{path}{name.replace('.', chr(92) + '.')}.")
        else:
            yield path + name, value


# Values that only count with another one.
WITH = {"monitoring.labels": {"monitoring": {"enabled": True}}, **{f"services.{name}.replicas": {"autoscaling": {"enabled": False}} for name in ("user", "order", "payment", "data")}}
PEERS = [{"ipBlock": {"cidr": "10.0.0.0/8"}}, {"ipBlock": {"cidr": "fd00::/8"}}]
OTHER = {"trafficPolicy.rules": [{"timeouts": {"request": "1s"}}], "settings": {"ORDERMESH_LOG": "debug"}, "monitoring.labels": {"release": "x"}, "image.pullSecrets": [{"name": "registry"}],
         "image.pullPolicy": "Always", **{f"networkPolicies.{peers}": PEERS for peers in ("database", "gateway", "clients")}}


def another(path, value):
    """A valid value that is not the default."""
    if path in OTHER:
        return OTHER[path]
    if isinstance(value, bool):
        return not value
    return value + 1 if isinstance(value, int) else "512Mi" if ".resources." in path else "another"


def nested(path, value):
    for name in reversed(path.split(".")):
        value = {name: value}
    return value


def merged(one, other):
    return {**one, **{key: merged(one[key], value) if isinstance(value, dict) and isinstance(one.get(key), dict) else value for key, value in other.items()}}


def chart():
    """The chart: lint; with default values it is deploy/base; every value has an effect; with all of them changed its objects are valid; a misspelled value is rejected."""
    if not shutil.which("kubectl"):
        return not_run("kubernetes: chart", "there is no kubectl, which includes kustomize")
    helm("lint", "--strict")
    text = helm("template")
    wrong, needed = differences(objects(run(["kubectl", "kustomize", BASE])), objects(text))
    wrong += [f"an exception that is not needed any more: {why}" for change, why in DIFFERENCES if change not in needed]
    check(not wrong, "\n".join(["the chart is deploy/base:", *wrong]))
    # Control case: a changed, a missing and an additional object are detected.
    base, other = objects(run(["kubectl", "kustomize", BASE])), objects(text)
    order = next(each for each in other if each["kind"] == "Deployment" and each["metadata"]["name"] == "order")
    containers(order)[0]["args"] = ["data"]
    other = [each for each in other if each["kind"] != "PriorityClass"] + [{"kind": "Secret", "metadata": {"name": "x"}}]
    found = {line.split(":")[0] for line in differences(base, other)[0]}
    check(found == {"Deployment order", "PriorityClass ordermesh-orders", "Secret x"}, f"differences are detected: {found}")

    values, everything, count = yaml.safe_load((CHART / "values.yaml").read_text()), {}, 0
    with tempfile.TemporaryDirectory() as folder:
        def render(given, *flags, fails=False):
            file = Path(folder) / "values.json"
            file.write_text(json.dumps(given))
            return helm("template", "--values", file, *flags, fails=fails)

        for path, value in leaves(values):
            changed, needs = nested(path, another(path, value)), WITH.get(path, {})
            check(render(merged(needs, changed)) != (render(needs) if needs else text), f"the value {path} has an effect")
            everything, count = merged(everything, changed), count + 1
        enabled = {"autoscaling": {"enabled": True}, "networkPolicies": {"enabled": True}, "priorityClass": {"create": True}}
        rendered = {"the chart, all values changed": render(everything), "the chart, all but the switches": render(merged(everything, enabled))}
        check("additional properties 'tga' not allowed" in render({"image": {"tga": "1"}}, fails=True), "a misspelled value is rejected")
        example, = re.findall(r"^```yaml\n(image: .*?)^```", (ROOT / "deploy/README.md").read_text(), re.M | re.S)
        rendered["the chart, with the README's values"] = render(yaml.safe_load(example))
        run(["helm", "package", CHART, "--destination", folder])
        check(helm("template", chart=next(Path(folder).glob("*.tgz"))) == text, "the packed chart has the linked files")
        check("user-mesh.shop.svc" in render({}, "--namespace", "shop"), "addresses have the release's namespace")
        with_monitoring = {(each["kind"], each["metadata"]["name"]): each["spec"] for each in objects(render({"monitoring": {"enabled": True}})) if "spec" in each}
    component, = objects((ROOT / k8s_manifests.MONITORING / "service-monitor.yaml").read_text())
    check(with_monitoring["ServiceMonitor", "collector"] == component["spec"], "the chart's ServiceMonitor is the component's")
    alerts = yaml.safe_load((ROOT / "deploy/operations/alerts.yaml").read_text())
    check(with_monitoring["PrometheusRule", "ordermesh"] == alerts, "the chart's rules are operations/alerts.yaml")
    rendered["the README's PrometheusRule"] = prometheus_rule()
    reports = k8s_manifests.schemas(rendered)
    return "; ".join([f"{len(objects(text))} objects as in deploy/base, {len(DIFFERENCES)} kinds of differences, each needed; {count} values", *reports])


def prometheus_rule():
    """The object of the command in deploy/README.md that makes a PrometheusRule of the alerts."""
    command, = re.findall(r"^(\{ printf [^`]*PrometheusRule[^`]*?) \| kubectl apply -f -$", (ROOT / "deploy/README.md").read_text(), re.M | re.S)
    text = run(["bash", "-euo", "pipefail", "-c", f"cd {ROOT} && {command}"])
    check(yaml.safe_load(text)["spec"] == yaml.safe_load((ROOT / "deploy/operations/alerts.yaml").read_text()), "its rules are operations/alerts.yaml")
    return text


PARTS = {"compose": compose, "compose-run": compose_run, "chart": chart}

if __name__ == "__main__":
    prepare_process()
    sys.exit(run_named("PACKAGES", PARTS, sys.argv[1:], []))
