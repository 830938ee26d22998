"""The roots that fleet hosts are clones of: Debian 12, and for one test Debian 11.

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
from dataclasses import dataclass
from pathlib import Path

from tests.fixtures import archive, cache

_DEBIAN_12_PACKAGES = (
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

# systemd 247, Python 3.9, glibc 2.31: the oldest that the roles and the agent accept.
_DEBIAN_11_PACKAGES = (
    *("systemd", "systemd-sysv", "dbus", "libpam-systemd", "openssh-server", "python3", "iproute2"),
    *("ca-certificates", "curl", "procps", "kmod", "nginx-light"),
)

EXCLUDED = ("/usr/share/doc/*", "/usr/share/man/*", "/usr/share/info/*", "/usr/share/locale/*")

# Runs outside the root with its path as $1. sshd keys, machine id and address belong to each clone.
CUSTOMIZE = r"""
set -e
systemctl --root="$1" --quiet enable ssh.service
systemctl --root="$1" --quiet disable SERVICES
systemctl --root="$1" --quiet mask console-getty.service \
    apt-daily.timer apt-daily-upgrade.timer e2scrub_all.timer e2scrub_reap.service \
    dpkg-db-backup.timer fstrim.timer phpsessionclean.timer systemd-tmpfiles-clean.timer
rm -f "$1"/etc/ssh/ssh_host_*_key* "$1"/etc/hostname
rm -f "$1"/etc/machine-id "$1"/var/lib/dbus/machine-id
rm -rf "$1"/var/lib/apt/lists/* "$1"/var/log/apt "$1"/var/log/dpkg.log
"""


@dataclass(frozen=True, slots=True)
class Recipe:
    """What a root has. `services` are those of its packages that do not start by themselves."""

    release: int
    suite: str
    packages: tuple[str, ...]
    services: tuple[str, ...]

    def command(self, target: Path) -> list[str]:
        """The mmdebstrap call that makes `target`."""
        disable = " ".join(f"{service}.service" for service in self.services)
        return [
            "mmdebstrap",
            "--variant=minbase",
            "--mode=root",
            f"--include={','.join(self.packages)}",
            *(f"--dpkgopt=path-exclude={pattern}" for pattern in EXCLUDED),
            '--aptopt=Acquire::Retries "3"',
            # a mirror may be a snapshot
            '--aptopt=Acquire::Check-Valid-Until "false"',
            f"--customize-hook={CUSTOMIZE.replace('SERVICES', disable)}",
            self.suite,
            str(target),
            *archive.sources((self.suite,)),
        ]

    def path(self) -> Path:
        """The finished root, whether it exists or not."""
        described = "\0".join((*self.packages, *self.services, *EXCLUDED, CUSTOMIZE))
        digest = hashlib.sha256(described.encode()).hexdigest()[:12]
        return cache.default_directory() / f"debian-{self.release}-{digest}"


DEBIAN_11 = Recipe(11, "bullseye", _DEBIAN_11_PACKAGES, ("nginx",))
DEBIAN_12 = Recipe(12, "bookworm", _DEBIAN_12_PACKAGES, ("haproxy", "nginx", "php8.2-fpm"))


@contextmanager
def _locked(file: Path) -> Iterator[None]:
    with file.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def build(recipe: Recipe = DEBIAN_12) -> Path:
    """Returns the root, building it first where it is missing (about half a minute, 230 MB).

    Raises CalledProcessError when mmdebstrap fails, FileNotFoundError when it is not installed,
    LookupError where apt knows no mirror.
    """
    root, name = recipe.path(), f"debian-{recipe.release}"
    if root.is_dir():
        return root
    root.parent.mkdir(parents=True, exist_ok=True)
    with _locked(root.parent / f"{name}.lock"):
        if root.is_dir():
            return root
        for stale in root.parent.glob(f"{name}-*.partial"):
            shutil.rmtree(stale)
        partial = root.with_name(f"{root.name}.partial")
        start = time.monotonic()
        print(f"fleet: building the root {root} (once) …", file=sys.stderr, flush=True)
        command = recipe.command(partial)
        subprocess.run(command, check=True, stdin=subprocess.DEVNULL, stdout=sys.stderr)
        partial.rename(root)
        print(f"fleet: root ready in {time.monotonic() - start:.0f} s", file=sys.stderr, flush=True)
    return root
