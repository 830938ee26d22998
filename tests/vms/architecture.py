"""Processor architectures of VMs, by the kernel's names for them."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

BINFMT = Path("/proc/sys/fs/binfmt_misc")
_NAME = "throughline-{}"


@dataclass(frozen=True, slots=True)
class Architecture:
    """What differs between them for QEMU, libvirt and Debian."""

    debian: str  # Debian's name
    machine: str  # QEMU's type of machine
    console: str  # the device of the kernel's serial console
    # binfmt_misc's words for its programs: magic bytes and mask of an ELF header
    magic: str = ""
    mask: str = ""


NATIVE = "x86_64"
ARCHITECTURES = {
    "x86_64": Architecture("amd64", "q35", "ttyS0"),
    "aarch64": Architecture(
        "arm64",
        "virt",
        "ttyAMA0",
        magic=r"\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00",
        mask=r"\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff",
    ),
}


@contextmanager
def programs_run(arch: str) -> Iterator[None]:
    """While the block runs, this machine runs programs of another architecture, in chroots too.

    QEMU emulates them (binfmt_misc(5); F: the emulator is opened now). A machine that does so
    already stays as it is. Raises FileNotFoundError where the emulator is not installed,
    CalledProcessError where the kernel has no binfmt_misc.
    """
    with ExitStack() as stack:
        if arch != NATIVE:
            stack.enter_context(_mounted())
        if arch != NATIVE and not any(BINFMT.glob(f"*{arch}")):
            stack.callback(_register(arch).write_text, "-1")
        yield


@contextmanager
def _mounted() -> Iterator[None]:
    """binfmt_misc is mounted while the block runs."""
    if (BINFMT / "register").exists():
        yield
        return
    mount = ["mount", "-t", "binfmt_misc", "binfmt_misc", str(BINFMT)]
    subprocess.run(mount, check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", str(BINFMT)], check=True)


def _register(arch: str) -> Path:
    """Has QEMU run programs of an architecture. Returns the file that ends this with "-1"."""
    emulator = shutil.which(f"qemu-{arch}-static")
    if emulator is None:
        raise FileNotFoundError(f"qemu-{arch}-static is not installed (make setup)")
    one = ARCHITECTURES[arch]
    entry = BINFMT / _NAME.format(arch)
    rule = f":{entry.name}:M::{one.magic}:{one.mask}:{emulator}:F"
    (BINFMT / "register").write_text(rule)
    return entry
