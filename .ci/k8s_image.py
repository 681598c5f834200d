"""Builds the image with deploy/Dockerfile and buildah: no Docker, no registry. The program is the release binary that CI has built and
tested (BINARY=prebuilt). The base image is built from Debian's packages, with the name that the Dockerfile gives it."""

import json
import os
import shutil
import tarfile
from datetime import UTC, datetime
from pathlib import Path

from k8s_cluster import HOME, PROGRAM_IMAGE, run
from system import BIN, ROOT, Failed, check

DOCKERFILE = ROOT / "deploy/Dockerfile"
MAX_BYTES = 27 * 1_000_000
SBOM = "usr/share/doc/ordermesh/sbom.cdx.json"
PACKAGES = ("buildah", "mmdebstrap")
# Any page: the labels `source` and `url`.
SOURCE = "https://example.com/ordermesh"


def skip_reason():
    """Why no image can be built here; None if it can."""
    if os.geteuid() == 0 and (all(map(shutil.which, PACKAGES)) or shutil.which("apt-get")):
        return None
    return f"it needs root, and {' and '.join(PACKAGES)} or apt-get"


def install():
    """Installs Debian's packages if they are missing."""
    if all(map(shutil.which, PACKAGES)):
        return
    run(["apt-get", "update", "-q"], seconds=300)
    run(["apt-get", "install", "-qy", "--no-install-recommends", *PACKAGES], seconds=600, env={"DEBIAN_FRONTEND": "noninteractive"})


def base_tar():
    """Debian 12 with CA certificates, the base of the Dockerfile's stage `rootfs`. Cached beside the cluster's programs."""
    install()
    tar = HOME / "bin/debian.tar"
    if not tar.exists():
        tar.parent.mkdir(parents=True, exist_ok=True)
        partial = tar.with_suffix(".partial.tar")
        run(["mmdebstrap", "--quiet", "--mode=root", "--variant=minbase", "--include=ca-certificates", "bookworm", partial], seconds=900)
        partial.rename(tar)
    return tar


class Buildah:
    """buildah with a separate store in a folder: plain copies (vfs), so that no mount is left behind."""

    def __init__(self, folder):
        self.folder = Path(folder)

    def __call__(self, *args, tries=3):
        try:
            return self.once(*args)
        except Failed as failure:
            # buildah copies itself into a sealed memfd before it starts a process; on a busy machine the kernel occasionally rejects that.
            if tries == 1 or "sealing memfd copy" not in str(failure):
                raise
            return self(*args, tries=tries - 1)

    def once(self, *args):
        return run(
            ["buildah", "--storage-driver", "vfs", "--root", self.folder / "store", "--runroot", self.folder / "run", *args], seconds=600,
            env={"BUILDAH_ISOLATION": "chroot"}).strip()


def build(folder):
    """Builds the image in a folder; returns (archive to import, report line)."""
    folder = Path(folder)
    buildah = Buildah(folder)
    name = next(line.split()[1] for line in DOCKERFILE.read_text().splitlines() if line.endswith(" AS rootfs"))
    empty = buildah("from", "scratch")
    buildah("add", "--quiet", empty, base_tar(), "/")
    buildah("config", "--env", "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", empty)
    buildah("commit", "--quiet", "--rm", empty, f"docker.io/library/{name}")
    (folder / "context/target/release").mkdir(parents=True)
    shutil.copy(BIN, folder / "context/target/release/ordermesh")
    commit = run(["git", "-C", ROOT, "rev-parse", "--short=12", "HEAD"], check=False).strip() or "unknown"
    epoch = run(["git", "-C", ROOT, "log", "-1", "--format=%ct"], check=False).strip() or "0"
    (folder / "context/target/dist").mkdir()
    bom = run([ROOT / ".ci/sbom.py"], env={"ORDERMESH_COMMIT": commit, "SOURCE_DATE_EPOCH": epoch})
    (folder / "context/target/dist/sbom.cdx.json").write_text(bom)
    created = datetime.fromtimestamp(int(epoch), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")

    def once(number):
        tag = f"{PROGRAM_IMAGE}-{number}"
        buildah("build", "--no-cache", "--build-arg", "BINARY=prebuilt", "--build-arg", f"COMMIT={commit}",
                "--build-arg", f"SOURCE_DATE_EPOCH={epoch}", "--build-arg", f"CREATED={created}", "--build-arg", f"SOURCE={SOURCE}", "--timestamp", epoch, "-f", DOCKERFILE, "-t", tag, folder / "context")
        return tag, buildah("inspect", "--type", "image", "--format", "{{.FromImageID}}", tag)

    (tag, first), (_, second) = once(1), once(2)
    check(first == second, f"two builds give the same image: {first} and {second}")
    config = json.loads(buildah("inspect", "--type", "image", tag))["OCIv1"]
    labels = {name.removeprefix("org.opencontainers.image."): value for name, value in config["config"]["Labels"].items()}
    expected = {"revision": commit, "created": created, "source": SOURCE, "url": SOURCE}
    check(labels | expected == labels, f"the image has the labels {expected}: {labels}")
    check(config["created"] == created, f"its date is that of its label, {created}: {config['created']}")
    buildah("tag", tag, PROGRAM_IMAGE)
    compressed = folder / "compressed.tar"
    buildah("push", "--quiet", PROGRAM_IMAGE, f"oci-archive:{compressed}")
    size = compressed.stat().st_size
    check(size <= MAX_BYTES, f"the image has at most {MAX_BYTES} bytes compressed: {size}")
    archive = folder / "image.tar"
    buildah("push", "--quiet", PROGRAM_IMAGE, f"docker-archive:{archive}:{PROGRAM_IMAGE}")
    files = contents(archive)
    check("ordermesh" in files and not [name for name in files if name.endswith(("/sh", "/bash", "/dpkg"))], f"it contains the program and no shell: {files}")
    check(SBOM in files, f"it contains its SBOM, {SBOM}: {files}")
    return archive, f"image: {size / 1e6:.1f} MB compressed, {archive.stat().st_size / 1e6:.1f} MB unpacked, {len(files)} files, reproducible"


def contents(archive):
    """Every file of a docker-archive."""
    found = []
    with tarfile.open(archive) as outer:
        manifest = json.load(outer.extractfile("manifest.json"))
        for layer in manifest[0]["Layers"]:
            with tarfile.open(fileobj=outer.extractfile(layer)) as inner:
                found += [member.name for member in inner if member.isfile()]
    return found
