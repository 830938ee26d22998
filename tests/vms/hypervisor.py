"""The hypervisor of a platform: libvirtd, its dnsmasq and QEMU in namespaces of their own.

Everything runs in one PID namespace, so that killing its first process ends all of it; in one
network namespace without a way out, `throughline-PLATFORM`; and in a mount namespace in which
libvirt's directories are ours. A libvirt of the machine itself is neither used nor changed.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

from tests.fixtures import cache
from tests.fixtures.waiting import poll
from tests.vms import processes
from tests.vms.platforms import STATE, Platform
from tests.vms.processes import Process

SCRIPT = Path(__file__).with_name("hypervisor.sh")
START_SECONDS = 60.0
REQUIRED = ("ip", "nsenter", "unshare", "libvirtd", "virsh", "vagrant", "dnsmasq", "qemu-img")

QEMU_CONF = """user = "root"
group = "root"
dynamic_ownership = 0
remember_owner = 0
security_driver = "none"
namespaces = []
cgroup_controllers = []
stdio_handler = "file"
"""
LIBVIRTD_CONF = """auth_unix_rw = "none"
auth_unix_ro = "none"
log_outputs = "3:file:/var/log/libvirt/libvirtd.log"
"""


def directory() -> Path:
    """Where disks and what libvirt knows about QEMU are kept: on a disk, unlike STATE."""
    return cache.directory() / "vms"


def pool(name: str) -> Path:
    """The directory that a platform's libvirt sees as /var/lib/libvirt."""
    return directory() / "libvirt" / name


def namespace(name: str) -> str:
    """The platform's network namespace, as `ip netns` shows it."""
    return f"throughline-{name}"


def namespace_path(name: str) -> Path:
    """The file that holds the platform's network namespace."""
    return Path("/run/netns") / namespace(name)


def _processes(name: str) -> list[Process]:
    """Those that are alive of the hypervisor's two: the one outside the namespaces, their first."""
    try:
        recorded = json.loads((STATE / name / "hypervisor.json").read_text())
    except FileNotFoundError:
        return []
    return [(pid, started) for pid, started in recorded if processes.alive((pid, started))]


def inside(name: str) -> list[str]:
    """The words before a command that is to run beside the platform's libvirtd.

    Raises ProcessLookupError when the hypervisor does not run.
    """
    alive = _processes(name)
    if len(alive) != 2:
        raise ProcessLookupError(f"the hypervisor of {name} does not run")
    return ["nsenter", f"--target={alive[1][0]}", "--mount", "--root", "--net", "--pid"]


def _check_machine() -> None:
    if os.geteuid() != 0:
        raise PermissionError("VMs need root")
    missing = [program for program in REQUIRED if shutil.which(program) is None]
    if missing:
        raise FileNotFoundError(f"not installed: {', '.join(missing)} (make setup)")


def _write_state(platform: Platform) -> None:
    for folder in ("etc", "run", "log", "mux"):
        (platform.state / folder).mkdir()
    (platform.state / "mux").chmod(0o700)
    (platform.state / "empty").write_text("")
    (platform.state / "etc/qemu.conf").write_text(QEMU_CONF)
    (platform.state / "etc/libvirtd.conf").write_text(LIBVIRTD_CONF)
    (platform.state / "boot.pid").write_text(json.dumps(processes.identify(os.getpid())) + "\n")
    (pool(platform.name) / "images").mkdir(parents=True)
    (directory() / "cache").mkdir(exist_ok=True)


def _child(pid: int, *, seconds: float = 5.0) -> int:
    """The first process of the PID namespace that `unshare` makes."""
    found = poll(lambda: processes.children(pid), seconds=seconds)
    if not found:
        raise RuntimeError("the hypervisor ended at its start")
    return found[0]


def _log(name: str) -> str:
    files = [STATE / name / "log/hypervisor.log", STATE / name / "log/libvirtd.log"]
    lines = [line for file in files if file.exists() for line in file.read_text().splitlines()]
    return "\n".join(lines[-15:])


def _record(platform: Platform, *pids: int) -> None:
    recorded = [processes.identify(pid) for pid in pids]
    (platform.state / "hypervisor.json").write_text(json.dumps(recorded) + "\n")


def _start(platform: Platform, *, kvm: bool) -> None:
    name = platform.name
    with (platform.state / "log/hypervisor.log").open("wb") as log:
        outside = subprocess.Popen(
            [
                *("ip", "netns", "exec", namespace(name)),
                *("unshare", "--mount", "--propagation", "private"),
                *("--pid", "--fork", "--kill-child=SIGKILL", "--mount-proc"),
                *("/bin/sh", str(SCRIPT), str(platform.state), str(pool(name))),
                *(str(directory() / "cache"), "yes" if kvm else "no"),
            ],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"},
        )
    _record(platform, outside.pid)
    _record(platform, outside.pid, _child(outside.pid))
    poll(lambda: _answers(name) or outside.poll() is not None, seconds=START_SECONDS, every=0.2)
    if outside.poll() is not None or not _answers(name):
        raise RuntimeError(f"libvirtd of {name} does not answer\n{_log(name)}")


def _answers(name: str) -> bool:
    """Returns whether the platform's libvirtd answers."""
    return not subprocess.run(
        [*inside(name), "virsh", "--quiet", "--connect", "qemu:///system", "uri"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
    ).returncode


def up(platform: Platform, *, kvm: bool) -> None:
    """Starts the hypervisor of a platform; one that a killed run left is removed first.

    Raises RuntimeError when libvirtd does not answer. Whatever goes wrong, nothing is left behind.
    """
    _check_machine()
    down(platform.name)
    try:
        platform.state.mkdir(parents=True, mode=0o700)
        _write_state(platform)
        subprocess.run(["ip", "netns", "add", namespace(platform.name)], check=True)
        loopback = ["ip", "-n", namespace(platform.name), "link", "set", "lo", "up"]
        subprocess.run(loopback, check=True)
        _start(platform, kvm=kvm)
    except BaseException:
        down(platform.name)
        raise


def _end_ssh_masters(state: Path) -> None:
    for socket in state.glob("mux/*"):
        subprocess.run(
            ["ssh", "-F", "none", "-o", f"ControlPath={socket}", "-O", "exit", "vm"],
            capture_output=True,
        )


def _end_boot(name: str) -> None:
    """Ends another process that is still booting this platform: it would begin again."""
    file = STATE / name / "boot.pid"
    if file.exists():
        pid, started = json.loads(file.read_text())
        if pid != os.getpid():
            processes.end_tree((pid, started))


def down(name: str) -> None:
    """Ends a platform's VM and hypervisor at once and removes all of it, however far it came."""
    _end_ssh_masters(STATE / name)
    _end_boot(name)
    # the first process of the PID namespace takes all others of it along
    processes.end(_processes(name))
    if namespace_path(name).exists():
        subprocess.run(["ip", "netns", "delete", namespace(name)], check=True)
    for directory in (STATE / name, pool(name)):
        if directory.exists():
            shutil.rmtree(directory)
    if STATE.exists() and not any(STATE.iterdir()):
        STATE.rmdir()


def names() -> list[str]:
    """All platforms that have left a trace: state files, disks, or a network namespace."""
    found = {path.name for path in STATE.glob("*") if path.is_dir()}
    found |= {path.name for path in pool("").glob("*")}
    prefix = namespace("")
    found |= {path.name.removeprefix(prefix) for path in Path("/run/netns").glob(f"{prefix}*")}
    return sorted(found)
