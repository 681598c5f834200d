"""Tests secrets.sh of the local overlay without a cluster; a fake kubectl returns the applied Secrets. A second run changes nothing
that is in use, and a CA rotation takes three steps, none of which can be skipped."""

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from system import BIN, ROOT, check

OVERLAY = "deploy/overlays/local"
SERVICES = ("user", "order", "payment", "data", "gateway")
# The key pair of RFC 8037, appendix A, and its thumbprint there.
RFC8037 = """-----BEGIN PRIVATE KEY-----
MC4CAQAwBQYDK2VwBCIEIJ1hsZ3v/VpguoRK9JLsLMREScVpezJpGXA7rAMcrn9g
-----END PRIVATE KEY-----
"""
THUMBPRINT = "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k"
KUBECTL = """#!/usr/bin/env bash
# kubectl --request-timeout=5s -n ordermesh get secret SERVICE-tls -o OUTPUT
[ -d "$APPLIED" ] || exit 1
case $8 in
  name) echo "secret/$6" ;;
  *ca*) base64 -w0 "$APPLIED/trust.pem" ;;
  *tls*) base64 -w0 "$APPLIED/tls/${6%-tls}.pem" ;;
esac
"""


class Folder:
    """A copy of the script, its secrets, and those in the cluster."""

    def __init__(self, directory):
        self.overlay = Path(directory) / "repository" / OVERLAY
        self.overlay.mkdir(parents=True)
        shutil.copy(ROOT / OVERLAY / "secrets.sh", self.overlay)
        self.secrets, self.cluster = self.overlay / "secrets", Path(directory) / "cluster"
        programs = Path(directory) / "programs"
        programs.mkdir()
        (programs / "kubectl").write_text(KUBECTL)
        (programs / "kubectl").chmod(0o755)
        self.env = {**os.environ, "PATH": f"{programs}:{os.environ['PATH']}", "APPLIED": str(self.cluster), "SETTLE_SECONDS": "0"}

    def run(self, *args):
        return subprocess.run(
            [self.overlay / "secrets.sh", *args, BIN], env=self.env, capture_output=True, text=True, timeout=60, check=False)

    def succeeds(self, *args):
        done = self.run(*args)
        check(done.returncode == 0, f"secrets.sh {' '.join(args)} succeeds: {done.stderr}")
        return done.stdout

    def fails(self, args, message):
        before = self.files()
        done = self.run(*args)
        check(done.returncode == 1 and message in done.stderr, f"secrets.sh {' '.join(args)} reports `{message}`: {done.stderr or done.stdout}")
        check(self.files() == before, f"secrets.sh {' '.join(args)}, which fails, changes nothing")

    def apply(self):
        shutil.rmtree(self.cluster, ignore_errors=True)
        shutil.copytree(self.secrets, self.cluster)

    def files(self):
        """The files' contents, without lock files, which are empty."""
        return {file.relative_to(self.secrets): file.read_bytes() for file in self.secrets.rglob("*") if file.is_file() and file.name != ".lock"}

    def check_trust(self, certificates, roots):
        """Checks that every service with these roots trusts every service with these certificates."""
        for service in SERVICES:
            done = subprocess.run(
                ["openssl", "verify", "-CAfile", roots / "trust.pem", certificates / "tls" / f"{service}.pem"],
                capture_output=True, text=True, check=False)
            check(done.returncode == 0, f"{service}'s certificate is trusted: {done.stderr}")


def rerun(folder):
    """Runs the script twice, and with certificates that have to be renewed."""
    folder.succeeds()
    first = folder.files()
    check(folder.succeeds() == "" and folder.files() == first, "run again, the script changes nothing")
    folder.apply()
    # Certificates that expire soon: valid for less than a week.
    subprocess.run([BIN, "certs", "--dir", folder.secrets / "tls", "--lifetime", "6d"], check=True, capture_output=True)
    check("apply them" in folder.succeeds(), "certificates that expire soon are renewed")
    renewed = folder.files()
    changed = {str(path) for path in renewed if renewed[path] != first.get(path)}
    leaves = {f"tls/{service}.{kind}" for service in SERVICES for kind in ("pem", "key")}
    check(changed == leaves, f"nothing else changes, in particular not the CA: {sorted(changed ^ leaves)}")
    folder.check_trust(folder.secrets, folder.cluster)
    folder.check_trust(folder.cluster, folder.secrets)
    return "a second run keeps every secret, and renews certificates under the same CA"


def missing_secrets(folder):
    """The script replaces nothing that the cluster uses."""
    (folder.secrets / "postgres-password").rename(folder.secrets / "elsewhere")
    folder.fails([], "postgres-password is gone")
    (folder.secrets / "elsewhere").rename(folder.secrets / "postgres-password")
    (folder.secrets / "tls").rename(folder.overlay / "tls")
    folder.fails([], "tls is gone")
    (folder.secrets / "trust.pem").rename(folder.overlay / "trust.pem")
    folder.fails([], "the cluster has Secrets")
    (folder.overlay / "tls").rename(folder.secrets / "tls")
    (folder.overlay / "trust.pem").rename(folder.secrets / "trust.pem")
    check(folder.succeeds() == "", "after the files are restored, the script changes nothing")
    # A folder created by an earlier version of the script.
    (folder.secrets / "tls/ca.key").rename(folder.overlay / "ca.key")
    check(folder.succeeds() == "", "the CA's key is not needed before certificates expire")
    (folder.secrets / "tls/order.pem").write_text("none")
    folder.fails([], "rotate-ca 1")
    (folder.overlay / "ca.key").rename(folder.secrets / "tls/ca.key")
    folder.succeeds()
    return "missing secrets that are in use are not created again: the script fails"


def rotate_ca(folder):
    """The three steps. At any time old and new pods trust each other."""
    folder.apply()
    before = folder.files()
    folder.fails(["rotate-ca", "2"], "step 1 comes first")
    folder.fails(["rotate-ca", "3"], "no CA is being replaced")
    folder.fails(["rotate-ca", "4"], "a step: 1, 2 or 3")

    def step(number):
        folder.succeeds("rotate-ca", str(number))
        # Some pods have loaded the step, others have not.
        for certificates in (folder.secrets, folder.cluster):
            for roots in (folder.secrets, folder.cluster):
                folder.check_trust(certificates, roots)

    step(1)
    folder.fails(["rotate-ca", "1"], "step 1 is done")
    folder.fails(["rotate-ca", "2"], "First: kubectl apply")
    folder.fails(["rotate-ca", "3"], "step 2 comes first")
    folder.apply()
    step(2)
    folder.fails(["rotate-ca", "1"], "step 3 comes next")
    folder.fails(["rotate-ca", "2"], "step 1 comes first")
    folder.fails(["rotate-ca", "3"], "First: kubectl apply")
    folder.apply()
    step(3)
    folder.apply()
    after = folder.files()
    changed = {str(path) for path in before.keys() | after.keys() if before.get(path) != after.get(path)}
    check(all(path.startswith("tls/") or path == "trust.pem" for path in changed), f"only certificates change: {sorted(changed)}")
    check(after[Path("trust.pem")] == after[Path("tls/ca.pem")] != before[Path("tls/ca.pem")], "the old CA is no longer trusted")
    check(folder.succeeds() == "" and folder.files() == after, "afterwards the script changes nothing")
    return "a CA is replaced in three steps, each of which fails until the previous one is applied"


def public_keys(folder):
    """token-keys.json is the public half of the existing key."""
    (folder.secrets / "signing-key.pem").write_text(RFC8037)
    folder.succeeds()
    text = (folder.secrets / "token-keys.json").read_text()
    check(f'"kid":"{THUMBPRINT}"' in text and '"x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"' in text, f"it matches RFC 8037's example: {text}")
    return "token-keys.json has the signing key's public half, by RFC 8037's example"


def script():
    with tempfile.TemporaryDirectory(prefix="ordermesh-secrets-") as directory:
        folder = Folder(directory)
        return [part(folder) for part in (rerun, missing_secrets, rotate_ca, public_keys)]


if __name__ == "__main__":
    print("\n".join(script()))
