"""The Debian 12 root that every fleet host is a clone of.

`build()` returns a directory that is never written to again: hosts boot from an overlay above it.
It is kept outside the repository, named after the hash of its recipe, so that a changed recipe
makes a new root, and an unchanged one costs nothing.
"""

from __future__ import annotations

import fcntl
import hashlib
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.fixtures import cache

SUITE = "bookworm"

PACKAGES = (
    # systemd with logind sessions, sshd and Python, as on an operator's host
    "systemd",
    "systemd-sysv",
    "dbus",
    "libpam-systemd",
    "openssh-server",
    "python3",
    "python3-apt",  # Ansible's module apt needs it
    "iproute2",
    "ca-certificates",
    "curl",
    "procps",
    "kmod",
    # the runtimes of the demo's services
    "haproxy",
    "nginx-light",
    "nodejs",
    "ruby",
    "ruby-webrick",
    "uvicorn",
    "python3-fastapi",
    "python3-httpx",
    "php8.2-fpm",
)

EXCLUDED = ("/usr/share/doc/*", "/usr/share/man/*", "/usr/share/info/*", "/usr/share/locale/*")

# Runs outside the root with its path as $1. sshd keys, machine id and address belong to each clone.
CUSTOMIZE = r"""
set -e
systemctl --root="$1" --quiet enable ssh.service
systemctl --root="$1" --quiet disable haproxy.service nginx.service php8.2-fpm.service
systemctl --root="$1" --quiet mask console-getty.service \
    apt-daily.timer apt-daily-upgrade.timer e2scrub_all.timer e2scrub_reap.service
rm -f "$1"/etc/ssh/ssh_host_*_key* "$1"/etc/hostname
rm -f "$1"/etc/machine-id "$1"/var/lib/dbus/machine-id
rm -rf "$1"/var/lib/apt/lists/* "$1"/var/log/apt "$1"/var/log/dpkg.log
"""


def command(target: Path) -> list[str]:
    """The mmdebstrap call that makes `target`."""
    return [
        "mmdebstrap",
        "--variant=minbase",
        "--mode=root",
        f"--include={','.join(PACKAGES)}",
        *(f"--dpkgopt=path-exclude={pattern}" for pattern in EXCLUDED),
        '--aptopt=Acquire::Retries "3"',
        f"--customize-hook={CUSTOMIZE}",
        SUITE,
        str(target),
    ]


def recipe_hash() -> str:
    """Twelve hex digits that change when the recipe does."""
    return hashlib.sha256("\0".join(command(Path("/"))).encode()).hexdigest()[:12]


def path() -> Path:
    """The finished root of the present recipe, whether it exists or not."""
    return cache.default_directory() / f"debian-12-{recipe_hash()}"


@contextmanager
def _locked(file: Path) -> Iterator[None]:
    with file.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def build() -> Path:
    """Returns the root, building it first where it is missing (about half a minute, 230 MB).

    Raises CalledProcessError when mmdebstrap fails, FileNotFoundError when it is not installed.
    """
    root = path()
    if root.is_dir():
        return root
    root.parent.mkdir(parents=True, exist_ok=True)
    with _locked(root.parent / "root.lock"):
        if root.is_dir():
            return root
        for stale in root.parent.glob("debian-12-*.partial"):
            shutil.rmtree(stale)
        partial = root.with_name(f"{root.name}.partial")
        start = time.monotonic()
        print(f"fleet: building the Debian 12 root {root} (once) …", file=sys.stderr, flush=True)
        subprocess.run(command(partial), check=True, stdin=subprocess.DEVNULL, stdout=sys.stderr)
        partial.rename(root)
        print(f"fleet: root ready in {time.monotonic() - start:.0f} s", file=sys.stderr, flush=True)
    return root
