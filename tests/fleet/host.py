"""One fleet host: a clone of the root, booted by systemd-nspawn, reached over SSH."""

from __future__ import annotations

import os
import shutil
import subprocess
import uuid
from dataclasses import dataclass
from pathlib import Path

from tests.fixtures import cgroup
from tests.fixtures.waiting import poll
from tests.fleet import cgroups, network

BOOT_SH = Path(__file__).with_name("boot.sh")
BOOT_SECONDS = 60.0

# systemd-networkd waits for udev where /sys is writable, and udev does not run in a container.
ADDRESS_UNIT = f"""[Unit]
Description=Address on the fleet's bridge
DefaultDependencies=no
Before=network.target ssh.service
Wants=network.target

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=ip link set host0 up
ExecStart=ip address add {{host.address}}/{network.PREFIX_LENGTH} dev host0
ExecStart=ip address add {{host.address6}}/{network.PREFIX_LENGTH6} dev host0 nodad
"""


@dataclass(frozen=True, slots=True)
class Host:
    """A host of a fleet. `name` is its hostname, its machine name and its name in the inventory."""

    name: str
    fleet: str
    number: int
    directory: Path
    machine_id: str

    @property
    def address(self) -> str:
        """IPv4 address on the fleet's bridge."""
        return network.address(self.number)

    @property
    def address6(self) -> str:
        """IPv6 address on the fleet's bridge."""
        return network.address6(self.number)

    @property
    def cgroup(self) -> Path:
        """The cgroup, seen from outside, that holds the supervisor and all of the host."""
        return cgroups.fleet(self.fleet) / self.name

    @property
    def console(self) -> Path:
        """The file with the output of the host's console."""
        return self.directory / "console.log"


def new(fleet: str, number: int, *, state: Path) -> Host:
    """Describes host `number` (1 …) of a fleet whose files are below `state`."""
    name = f"{fleet}{number}"
    return Host(name, fleet, number, state / name, uuid.uuid4().hex)


def _write(file: Path, content: str, *, mode: int = 0o644) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(content)
    file.chmod(mode)


def write_clone(host: Host, *, public_key: str, host_key: Path, names: str) -> None:
    """Writes the files in which this host differs from the root, into its overlay's upper layer.

    `public_key` may log in as root; `host_key` is the private key of its sshd; `names` is its
    /etc/hosts.
    """
    upper = host.directory / "upper"
    for directory in (upper, host.directory / "work", host.directory / "root"):
        directory.mkdir(parents=True)
        directory.chmod(0o755)
    _write(upper / "etc/machine-id", f"{host.machine_id}\n", mode=0o444)
    _write(upper / "etc/hostname", f"{host.name}\n")
    _write(upper / "etc/hosts", names)
    unit = upper / "etc/systemd/system/fleet-address.service"
    _write(unit, ADDRESS_UNIT.format(host=host))
    wanted = unit.parent / "multi-user.target.wants" / unit.name
    wanted.parent.mkdir()
    wanted.symlink_to(f"../{unit.name}")
    _write(upper / "root/.ssh/authorized_keys", public_key, mode=0o600)
    (upper / "root").chmod(0o700)
    (upper / "root/.ssh").chmod(0o700)
    _write(upper / "etc/ssh/ssh_host_ed25519_key", host_key.read_text(), mode=0o600)
    _write(
        upper / "etc/ssh/sshd_config.d/fleet.conf",
        "HostKey /etc/ssh/ssh_host_ed25519_key\nUseDNS no\nPasswordAuthentication no\n",
    )


def start(host: Host, *, root: Path) -> int:
    """Starts the host and returns the process id of its supervisor; it boots in the background."""
    cgroup = cgroups.create(host.fleet, host.name)
    arguments = [cgroup, root, host.directory, host.name, network.BRIDGE]
    with host.console.open("ab") as console:
        supervisor = subprocess.Popen(
            [
                *network.inside(host.fleet),
                *("unshare", "--mount", "--propagation", "private"),
                *("/bin/sh", str(BOOT_SH), *map(str, arguments)),
            ],
            stdin=subprocess.DEVNULL,
            stdout=console,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={"PATH": os.environ["PATH"], "LANG": "C.UTF-8"},
        )
    return supervisor.pid


def wait_running(host: Host, *, ssh: list[str], seconds: float = BOOT_SECONDS) -> None:
    """Waits until systemd says `running`. Raises RuntimeError with the console when it does not.

    On a connection of its own: one that is made before logind runs stays in ssh.service.
    """
    state = poll(
        lambda: system_state([*ssh, "-o", "ControlPath=none", host.name]),
        enough=lambda found: found in ("running", "degraded", "maintenance", "stopping"),
        seconds=seconds,
    )
    if state != "running":
        raise RuntimeError(f"{host.name} is not running after its boot: {state}\n{tail(host)}")


def system_state(ssh: list[str]) -> str:
    """The state of systemd once it has started everything, or the error of SSH."""
    answer = subprocess.run(
        [*ssh, "systemctl is-system-running --wait"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    return answer.stdout.strip() or answer.stderr.strip()


def tail(host: Host, *, lines: int = 20) -> str:
    """The last lines of the host's console."""
    if not host.console.exists():
        return "(no console)"
    return "\n".join(host.console.read_text(errors="replace").splitlines()[-lines:])


def leader(host: Host) -> int:
    """The process id, seen from outside, of the host's systemd.

    Raises ProcessLookupError while the host is down.
    """
    init = host.cgroup / "payload/init.scope/cgroup.procs"
    if not init.exists():
        raise ProcessLookupError(f"{host.name} is not running")
    for line in init.read_text().split():
        status = Path(f"/proc/{line}/status")
        if any(row.split()[-1] == "1" for row in status.read_text().splitlines() if "NSpid" in row):
            return int(line)
    raise ProcessLookupError(f"{host.name} has no init process")


def stop(host: Host) -> None:
    """Kills the host without a shutdown, and removes its cgroups and files."""
    cgroup.kill(host.cgroup)
    cgroups.remove(host.cgroup)
    if host.directory.exists():
        shutil.rmtree(host.directory)
