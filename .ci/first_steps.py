#!/usr/bin/env python3
"""The first steps, as on machines other than this one.

    .ci/first_steps.py [PART...]

`fresh`: a root with Debian's minimal packages, gcc, Rust and grpcurl, a fresh clone, and what is compiled here; `ipv6`: no 127.0.0.1; `folder`: a data
folder that cannot be written to. Only by name: `base` makes that root, which is kept; `cold` is `fresh`, but downloads and compiles everything, and runs all
tests, as a new user does: about twenty minutes. Needs root, and mmdebstrap or apt-get. Rust is this machine's toolchain, grpcurl that of .ci/tools.sh.
"""

import fcntl
import os
import re
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.dont_write_bytecode = True
sys.path.insert(0, str(Path(__file__).resolve().parent))

from readme import parse  # noqa: E402
from system import BIN, ROOT, TARGET, Failed, System, check, free_port_base, is_free, not_run, prepare_process, run_named, run_parts  # noqa: E402

BASE = ROOT / ".ci/bin/fresh-root"
PACKAGES = "gcc,libc6-dev"
# In the root: an ordinary user's home.
HOME = "/home/ada"
# The README's section after the first steps.
END = "## See it in Jaeger"
# What this machine needs to reach the registry of crates.
REGISTRY = re.compile(r"(https?|no|all)_proxy|SSL_CERT_\w+|CARGO_(HTTP|NET|REGISTR|SOURCE)\w*", re.I)


def do(*command, seconds=600):
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=seconds, check=False)
    check(done.returncode == 0, f"{' '.join(map(str, command))} succeeds:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return done.stdout.strip()


def skip_reason():
    """Why there can be no such root here; None if there can."""
    if os.geteuid() != 0:
        return "it needs root"
    return None if BASE.exists() or shutil.which("mmdebstrap") or shutil.which("apt-get") else "it needs mmdebstrap or apt-get"


def base():
    """Makes the root's files from Debian's packages. Kept beside CI's tools; another list of packages makes another one."""
    made_of = BASE.with_suffix(".packages")
    if not BASE.exists() or made_of.read_text() != PACKAGES:
        if not shutil.which("mmdebstrap"):
            do("apt-get", "update", "-q")
            do("apt-get", "install", "-qy", "--no-install-recommends", "mmdebstrap")
        BASE.parent.mkdir(exist_ok=True)
        partial = BASE.with_suffix(".partial")
        for folder in (BASE, partial):
            shutil.rmtree(folder, ignore_errors=True)
        unsynced = "--dpkgopt=force-unsafe-io"
        # Its mounts end with the namespace, also when it is interrupted.
        do("unshare", "--mount", "mmdebstrap", "--quiet", "--mode=root", "--variant=minbase", unsynced, f"--include={PACKAGES}", "bookworm", partial, seconds=900)
        partial.rename(BASE)
        made_of.write_text(PACKAGES)
    return BASE


def mount(root, path, *options):
    """Mounts this machine's folder at the same path of the root; the mount ends with this process's namespace."""
    (root / str(path).lstrip("/")).mkdir(parents=True, exist_ok=True)
    do("mount", *options, root / str(path).lstrip("/"))


def overlay(lower, target, layers):
    """A folder of this machine, elsewhere; what is written there goes to `layers`."""
    for folder in (layers / "upper", layers / "work", target):
        folder.mkdir(parents=True, exist_ok=True)
    do("mount", "-t", "overlay", "overlay", "-o", f"lowerdir={lower},upperdir={layers}/upper,workdir={layers}/work", target)


def loopback_up():
    """In a new network namespace the loopback interface is down."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, 0x8914, struct.pack("16sH14x", b"lo", 1))  # SIOCSIFFLAGS, IFF_UP


class Fresh:
    """The root in a folder. Its mounts are in this process's namespace: they end with it, and no other process sees them."""

    def __init__(self, folder, reuse):
        self.root, self.reuse = folder / "root", reuse
        # cargo knows what is compiled by the absolute path of its source.
        self.tree = str(ROOT) if reuse else f"{HOME}/ordermesh"
        toolchain = do("rustc", "--print", "sysroot")
        # Its own path may be in a home that the user in the root cannot read.
        rust = toolchain if reuse else "/opt/rust"
        self.env = {"HOME": HOME, "LANG": "C.UTF-8", "CARGO_TERM_COLOR": "never", "PATH": f"{rust}/bin:/usr/local/bin:/usr/bin:/bin"}
        layers = folder / "layers"
        layers.mkdir()
        if reuse:
            do("mount", "-t", "tmpfs", "tmpfs", layers)
        overlay(BASE, self.root, layers / "root")
        mount(self.root, rust, "--bind", "-o", "ro", toolchain)
        mount(self.root, "/dev", "--rbind", "/dev")
        mount(self.root, "/proc", "-t", "proc", "proc")
        (self.root / "etc/hosts").write_text("127.0.0.1 localhost\n::1 localhost\n")
        shutil.copy(shutil.which("grpcurl"), self.root / "usr/local/bin")
        do("git", "clone", "--quiet", f"file://{ROOT}", self.root / self.tree[1:])
        if reuse:
            self.use_compiled(layers)
        else:
            self.use_registry()

    def use_compiled(self, layers):
        # Not newer than what was compiled from it.
        do("find", self.root / self.tree[1:], "-exec", "touch", "-h", "-d", "2000-01-01", "{}", "+")
        cargo_home = Path(os.environ.get("CARGO_HOME", Path.home() / ".cargo"))
        overlay(TARGET, self.root / str(TARGET)[1:], layers / "target")
        overlay(cargo_home, self.root / str(cargo_home)[1:], layers / "cargo")
        self.env |= {"CARGO_HOME": str(cargo_home), "CARGO_NET_OFFLINE": "true", "CARGO_TARGET_DIR": str(TARGET)}

    def use_registry(self):
        home = self.root / HOME[1:]
        (self.root / "etc/ssl/certs").mkdir(parents=True, exist_ok=True)
        for file in ("/etc/resolv.conf", "/etc/ssl/certs/ca-certificates.crt"):
            shutil.copy(file, self.root / file[1:])
        self.env |= {name: value for name, value in os.environ.items() if REGISTRY.fullmatch(name)}
        config = Path(os.environ.get("CARGO_HOME", Path.home() / ".cargo")) / "config.toml"
        if config.exists():
            (home / ".cargo").mkdir()
            shutil.copy(config, home / ".cargo")
        do("chown", "-R", "1000:1000", home)

    def command(self, code):
        user = [] if self.reuse else ["--userspec=1000:1000"]
        env = [f"{name}={value}" for name, value in self.env.items()]
        return ["chroot", *user, str(self.root), "env", "-i", *env, "bash", "-ec", f"cd {self.tree}\n{code}"]


def first_steps(folder, reuse=""):
    """The README's commands up to the order by hand, as printed; with `reuse` without the tests and the demo."""
    if reuse:
        loopback_up()
    fresh = Fresh(Path(folder), bool(reuse))
    end = (ROOT / "README.md").read_text().split(END)[0].count("\n")
    start, *rest = [block for block in parse("README.md") if int(block.line.split()[-1]) < end]
    check(start.background_until and len(rest) > 8, f"the README begins with starting the system: {start}")
    # CI runs the tests and the demo anyway.
    skipped = ("cargo test --workspace", "cargo run --release -- demo") if reuse else ()
    blocks = [block for block in rest if not block.skipped and block.code not in skipped]
    began = time.monotonic()
    system = System(command=fresh.command(f"exec {start.code}"), data_dir=fresh.root / fresh.tree[1:] / "data", port_base=7000)
    with system.start(seconds=7200, until=start.background_until):
        ready = time.monotonic() - began
        # In a single shell: the blocks use the variables of earlier ones.
        code = "\n".join(block.code for block in blocks)
        done = subprocess.run(fresh.command(code), stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=7200, check=False)
        check(done.returncode == 0, f"the commands succeed:\n{done.stdout[-6000:]}\n{done.stderr[-6000:]}")
        missing = [text for block in blocks for text in block.expected if text not in done.stdout]
        check(not missing, f"{missing} in the output:\n{done.stdout[-6000:]}")
        status = system.stop()
        check(status == 0, f"after SIGTERM it exits with 0, not {status}")
    tests = sum(map(int, re.findall(r"^test result: ok\. (\d+) passed", done.stdout, re.M)))
    return f"ready after {ready:.0f} s, {len(blocks)} blocks, {tests or 'no'} tests, {time.monotonic() - began:.0f} s"


def in_namespaces(kinds, name, *arguments, seconds=300):
    """Runs a function of this file in namespaces of its own; returns the last line of its output."""
    command = ["unshare", *kinds, sys.executable, str(Path(__file__).resolve()), "--in", name, *map(str, arguments)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=seconds, check=False)
    check(done.returncode == 0, f"{name} in its namespaces: {done.stdout}")
    return done.stdout.strip().splitlines()[-1]


def in_root(reuse):
    check(shutil.which("grpcurl"), "grpcurl is in PATH: .ci/tools.sh grpcurl")
    base()
    # Deleted out here, where nothing is mounted in it.
    with tempfile.TemporaryDirectory(prefix="ordermesh-fresh-") as folder:
        kinds = ["--mount", "--net"] if reuse else ["--mount"]
        return in_namespaces(kinds, "first_steps", folder, *(["reuse"] if reuse else []), seconds=300 if reuse else 4 * 3600)


def fresh():
    """The README's first steps in a root that has only Rust and a C compiler, with what is compiled here."""
    return in_root(reuse=True)


def cold():
    """The README's first steps in such a root, from nothing: downloads and compiles everything, and runs all tests."""
    return in_root(reuse=False)


def ipv6():
    """A machine without IPv4: the system runs on ::1, and the printed lines call it there."""
    return in_namespaces(["--net"], "ipv6_only")


def ipv6_only():
    loopback_up()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, 0x8916, struct.pack("16sHH4s8x", b"lo", socket.AF_INET, 0, bytes(4)))  # SIOCSIFADDR: none
    check(not is_free(7101), "control: nothing can listen on 127.0.0.1")
    with tempfile.TemporaryDirectory(prefix="ordermesh-ipv6-") as folder:
        with System(["--tls"], port_base=7000, data_dir=Path(folder) / "data") as system:
            lines = "\n".join(line for line in system.lines if re.match(r"\w*=?\$?\(?grpcurl ", line))
            check(lines.count(" [::1]:7") == 7, f"the printed lines call ::1: {system.lines}")
            printed = do("bash", "-ec", lines)
            check("ORDER_STATE_FULFILLMENT_STARTED" in printed, f"the printed lines succeed: {printed}")
            system.run("demo", "--only", "success", "--tls")
            system.run("verify", "--tls")
        done = subprocess.run([BIN, "data", "--data-dir", folder], capture_output=True, text=True, timeout=30, check=False)
        check(done.returncode == 1 and "is not an address of this machine" in done.stderr and "--listen" in done.stderr, f"a service says why: {done}")
        return f"{len(lines.splitlines())} lines, the demo; a service without --listen: {done.stderr.splitlines()[0]}"


def folder():
    """A data folder on a read-only or a full file system: the error names it and the flag to change, and nothing is started."""
    return in_namespaces(["--mount"], "unusable_folders")


def unusable_folders():
    reasons = []
    with tempfile.TemporaryDirectory(prefix="ordermesh-folder-") as parent:
        for name, options in (("read-only", "ro"), ("full", "size=4k,nr_inodes=3")):
            data_dir = Path(parent) / name
            data_dir.mkdir(mode=0o700)
            do("mount", "-t", "tmpfs", "-o", f"mode=700,{options}", "tmpfs", data_dir)
            system = System(port_base=free_port_base(2), data_dir=data_dir)
            done = subprocess.run(system.command, capture_output=True, text=True, timeout=30, check=False)
            do("umount", data_dir)
            is_said = str(data_dir) in done.stderr and "choose another with --data-dir" in done.stderr
            check(done.returncode == 2 and is_said and not done.stdout, f"the error names folder and flag: {done}")
            reasons.append(done.stderr.splitlines()[-1].strip())
    return "; ".join(reasons)


def skipped():
    """Needs root, for namespaces."""
    return not_run("the first steps on other machines", skip_reason())


PARTS = {"fresh": fresh, "ipv6": ipv6, "folder": folder}
INNER = {"first_steps": first_steps, "ipv6_only": ipv6_only, "unusable_folders": unusable_folders}


def main(arguments):
    if arguments[:1] == ["--in"]:
        try:
            print(INNER[arguments[1]](*arguments[2:]))
            return 0
        except Failed as failed:
            print(failed)
            return 1
    if skip_reason():
        return run_parts("FIRST STEPS", {"skipped": skipped})
    if arguments in (["base"], ["cold"]):  # without a program
        return run_parts("FIRST STEPS", {arguments[0]: {"base": base, "cold": cold}[arguments[0]]})
    return run_named("FIRST STEPS", PARTS, arguments, ["grpcurl", "unshare"])


if __name__ == "__main__":
    prepare_process()
    sys.exit(main(sys.argv[1:]))
