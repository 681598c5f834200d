"""Secrets: runs the whole demo with known ones; none of them is in a log line, a span, an event or an error."""

import json
import subprocess
import tempfile
import uuid
from contextlib import contextmanager
from pathlib import Path

from golden import SERVICES
from jaeger import Jaeger
from system import CallError, System, check, eventually, grpc

PASSWORD = "Tr0ub4dor-and-a-secret-horse"
MAX_TRACES = 9_999


def stop_and_collect(jaeger, system):
    """The system's log lines, and its spans by service."""
    system.stop()
    spans = {}
    for service in SERVICES:
        answer = jaeger.ask(f"/api/traces?service={service}&lookback=1h&limit={MAX_TRACES}")
        check(len(answer["data"]) < MAX_TRACES, f"all traces of {service} are searched")
        spans[service] = json.dumps(answer)
    return {"log lines": "\n".join(system.lines), **{f"spans of {service}": text for service, text in spans.items()}}


def customer_with_secrets(system):
    """Registers, logs in (also with wrong passwords), refreshes, changes the password, orders; returns the secrets and the errors."""
    email, token_of_payment = f"leak-{uuid.uuid4().hex[:8]}@example.com", "pm_card_visa_chargeDeclinedStolenCard"
    user = system.port("user")
    registration = {"request_id": str(uuid.uuid4()), "email": email, "password": PASSWORD, "display_name": "Leak"}
    grpc(user, "user.v1.UserService/Register", registration)
    errors = []
    for wrong in (PASSWORD + "-wrong", PASSWORD * 3):
        try:
            grpc(user, "user.v1.UserService/Login", {"email": email, "password": wrong})
        except CallError as error:
            errors.append(error.text)
    session = grpc(user, "user.v1.UserService/Login", {"email": email, "password": PASSWORD})["session"]
    renewed = grpc(user, "user.v1.UserService/RefreshSession", {"refresh_token": session["refreshToken"]})["session"]
    token = renewed["accessToken"]
    change = {"current_password": PASSWORD, "new_password": PASSWORD + "-new"}
    grpc(user, "user.v1.UserService/ChangePassword", change, token)
    try:
        grpc(user, "user.v1.UserService/GetProfile", {}, token + "x")
    except CallError as error:
        errors.append(error.text)
    order = system.order(token, token_of_payment)
    system.until_final(order["orderId"], token)
    secrets = {
        "the demonstration's password": "correct horse battery", "the demonstration's payment token": "pm_card_visa",
        "another of its payment tokens": "pm_gateway_answerLost", "a password": PASSWORD, "a new password": PASSWORD + "-new", "a payment token": token_of_payment,
        "an access token": token, "an access token's signature": token.rsplit(".", 1)[1],
        "a refresh token": session["refreshToken"], "a later refresh token": renewed["refreshToken"]}
    return email, order["orderId"], secrets, "\n".join(errors)


def secrets_of(system):
    """The system's own secrets."""
    folder = system.data_dir
    keys = "".join(path.read_text() for path in (folder / "keys").glob("*.pem")).splitlines()
    return {
        "the mesh secret": (folder / "mesh.secret").read_text().strip(),
        "the gateway's API key": (folder / "gateway.key").read_text().strip(),
        "the operator's password": (folder / "operator.txt").read_text().split()[1],
        "a signing key": next(line for line in keys if line and not line.startswith("-"))}


@contextmanager
def tapped(system, path):
    """Writes all calls of the system to a file, until the `with` block ends."""
    with path.open("wb") as file:
        tap = subprocess.Popen(system.command_of("tap", "-o", "json"), stdout=file, stderr=subprocess.DEVNULL, start_new_session=True)
        try:
            yield
        finally:
            tap.terminate()
            tap.wait(10)


def snapshots(system):
    """The state of every instance."""
    operator = system.login_as_operator()
    return [grpc(system.port(service, instance), "mesh.v1.MeshAdminService/GetSnapshot", {}, operator)
            for service in ("user", "order", "payment", "data") for instance in range(1, system.instances + 1)]


def run():
    """The demonstration at the most verbose log level, with known secrets: none of them leaks."""
    with tempfile.TemporaryDirectory() as folder, Jaeger() as jaeger, System(flags=["--log", "trace"], env=jaeger.env()) as system:
        calls = Path(folder, "calls")
        banner = len(system.lines)
        email, order_id, secrets, errors = customer_with_secrets(system)
        secrets |= secrets_of(system)
        with tapped(system, calls):
            system.run("demo")
            system.until_final(system.order(system.login(email, PASSWORD + "-new"))["orderId"], system.login_as_operator())
            eventually("calls are tapped", 15, lambda: "OrderService/CreateOrder" in calls.read_text())
        live = calls.read_text() + json.dumps(snapshots(system)) + system.run("topology", "-o", "json")
        events = eventually("the order's events", 15, lambda: system.events(order_id=order_id))
        stored = json.dumps(system.all_events()) + json.dumps(events)
        # The operator's password is printed only to a terminal; the lines to copy have the demonstration's.
        check(not any(secrets["the operator's password"] in line for line in system.lines[:banner]), "no operator's password at the start")
        system.lines[:banner] = []
        collected = stop_and_collect(jaeger, system)
        collected |= {"stored events": stored, "errors": errors, "taps and snapshots": live}
    check(email not in live and "@example.com" not in live, "no e-mail address is in a tap or a snapshot")
    for place, text in collected.items():
        for name, secret in secrets.items():
            at = text.find(secret)
            check(at < 0, f"{name} is not in the {place}: …{text[max(0, at - 200):at + 40]}…")
    # Control case: non-secret data is found in the same places.
    check("OrderService/CreateOrder" in collected["spans of order"], "the spans were searched")
    check("order_creation" in stored.lower() and order_id in stored, "the events were searched")
    check(order_id in collected["log lines"], "the log lines were searched")
    check("INVALID_CREDENTIALS" in live and "ROLE_NOT_ALLOWED" in live, "the taps were searched")
    check("INVALID_CREDENTIALS" in errors, "the errors were searched")
    size = sum(map(len, collected.values())) // 1024
    return f"{len(secrets)} secrets in none of {size} KiB of log lines, spans, events and errors (of {email})"
