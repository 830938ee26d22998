"""Whether KVM boots a kernel here. Only a boot proves it, not /dev/kvm."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

from tests.fixtures import cache
from tests.vms import architecture, boxes

DEVICE = Path("/dev/kvm")
SECONDS = 10.0  # a kernel says who it is in the first second
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def _boots(kernel: Path, initrd: Path) -> bool:
    """Boots without a disk and waits for the kernel to start the initrd's init."""
    machine = [
        "-M",
        "q35",
        "-accel",
        "kvm",
        "-cpu",
        "max",
        "-m",
        "256",
        "-nodefaults",
        "-no-reboot",
    ]
    words = ["-kernel", str(kernel), "-initrd", str(initrd), "-append", "console=ttyS0 panic=-1"]
    process = subprocess.Popen(
        ["qemu-system-x86_64", *machine, *words, "-display", "none", "-serial", "stdio"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert process.stdout is not None
    try:
        output, _ = process.communicate(timeout=SECONDS)
    except subprocess.TimeoutExpired as late:
        output = late.output or b""
    finally:
        process.kill()
        process.wait()
    return b"Run /init as init process" in output


def usable(box: str) -> tuple[bool, str]:
    """Whether KVM works, and why not. The answer is kept until the machine boots again."""
    arch = boxes.RECIPES[box].arch
    if arch != architecture.NATIVE:
        return False, f"the machine is of another architecture than {arch}"
    if not DEVICE.exists():
        return False, f"there is no {DEVICE}"
    kept = cache.directory() / "boxes/kvm"
    boot = BOOT_ID.read_text().strip()
    if kept.exists():
        boot_then, _, answer = kept.read_text().partition(" ")
        if boot_then == boot:
            return answer == "", answer
    begin = time.monotonic()
    works = _boots(*boxes.kernel(box, boxes.RECIPES[box].lines[-1]))
    seconds = time.monotonic() - begin
    answer = "" if works else f"a kernel did not come up with {DEVICE} in {seconds:.0f} s"
    kept.write_text(f"{boot} {answer}")
    return works, answer
