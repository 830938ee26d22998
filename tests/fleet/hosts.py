"""A fleet of systemd-nspawn hosts on a private network: `with fleet("demo", count=3) as hosts: …`

Also a command, for runs by hand:

    python -m tests.fleet.hosts up --name demo --count 3
    ansible-playbook -i /run/throughline-fleet/demo/inventory.yml playbooks/site.yml
    python -m tests.fleet.hosts down --name demo

State is below /run/throughline-fleet/NAME: `inventory.yml` (Ansible), `ssh_config` (ssh and
testinfra), the key, and for each host its console and the upper layer of its overlay.
Both files reach into the fleet's network namespace by themselves, from any shell of root.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.fixtures import cgroup
from tests.fleet import cgroups, host, network, root
from tests.fleet.host import Host
from tests.fleet.interrupt import interruptible

STATE = Path("/run/throughline-fleet")
CONNECT = Path(__file__).with_name("connect.py")
# the host side of a veth pair is called vb-NAME1, and an interface name has at most 15 characters
NAME = re.compile(r"[a-z][a-z0-9-]{0,8}")
REQUIRED = ("mmdebstrap", "systemd-nspawn", "ip", "nsenter", "unshare", "ssh", "ssh-keygen")

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Fleet:
    """A running fleet."""

    name: str
    hosts: tuple[Host, ...]

    @property
    def state(self) -> Path:
        """The directory that holds the fleet's files."""
        return STATE / self.name

    @property
    def inventory(self) -> Path:
        """An Ansible inventory with all hosts in group `fleet`."""
        return self.state / "inventory.yml"

    @property
    def ssh(self) -> list[str]:
        """The words before HOST and COMMAND that run a command over SSH."""
        return ["ssh", "-F", str(self.state / "ssh_config")]

    @property
    def inside(self) -> list[str]:
        """The words before a command that is to run on the fleet's bridge."""
        return network.inside(self.name)

    def run(
        self, on: Host, command: str, *, check: bool = True, seconds: float = 60.0
    ) -> subprocess.CompletedProcess[str]:
        """Runs a shell command on a host over SSH and returns its output.

        Raises CalledProcessError for a failed command when `check` is set, and TimeoutExpired.
        """
        return subprocess.run(
            [*self.ssh, on.name, command],
            check=check,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=seconds,
        )


def say(line: str) -> None:
    """Progress goes to standard error at once."""
    print(f"fleet: {line}", file=sys.stderr, flush=True)


def start_time(pid: int) -> int:
    """The start time of a process in clock ticks since boot, 0 when there is no such process."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return int(text.rpartition(")")[2].split()[19])


def _check_machine() -> None:
    if os.geteuid() != 0:
        raise PermissionError("fleet hosts need root")
    missing = [program for program in REQUIRED if shutil.which(program) is None]
    if missing:
        raise FileNotFoundError(
            f"not installed: {', '.join(missing)} "
            "(apt-get install mmdebstrap systemd-container iproute2 util-linux openssh-client)"
        )
    cgroup.cgroup2()


def _keygen(file: Path, *, comment: str) -> str:
    """Makes an SSH key pair at `file` and returns the public key's line."""
    subprocess.run(
        ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", comment, "-f", str(file)], check=True
    )
    return file.with_name(f"{file.name}.pub").read_text()


def _ssh_config(fleet: Fleet) -> str:
    """An ssh_config whose ProxyCommand enters the fleet's network namespace."""
    proxy = [*fleet.inside, sys.executable, str(CONNECT), "%h", "%p"]
    lines = [f"Host {' '.join(one.name for one in fleet.hosts)}"]
    options = {
        "User": "root",
        "IdentityFile": fleet.state / "id_ed25519",
        "IdentitiesOnly": "yes",
        "UserKnownHostsFile": fleet.state / "known_hosts",
        "StrictHostKeyChecking": "yes",
        "ProxyCommand": " ".join(proxy),
        "ProxyUseFdpass": "yes",
        "ConnectTimeout": 5,
        "ServerAliveInterval": 5,
        "ControlMaster": "auto",
        "ControlPath": fleet.state / "mux" / "%n",
        "ControlPersist": 60,
        "LogLevel": "ERROR",
    }
    lines += [f"    {key} {value}" for key, value in options.items()]
    for one in fleet.hosts:
        lines += [f"Host {one.name}", f"    HostName {one.address}", f"    HostKeyAlias {one.name}"]
    return "\n".join(lines) + "\n"


def _inventory(fleet: Fleet) -> str:
    """Writes JSON, which is valid YAML and needs no library."""
    variables = {
        "ansible_user": "root",
        "ansible_python_interpreter": "/usr/bin/python3",
        "ansible_ssh_common_args": f"-F {fleet.state / 'ssh_config'}",
        "ansible_control_path_dir": str(fleet.state / "mux"),
    }
    hosts = {
        one.name: {
            "fleet_address": one.address,
            "fleet_address6": one.address6,
            # Only ssh_config knows the names.
            "throughline_addresses": [one.address, one.address6],
        }
        for one in fleet.hosts
    }
    groups = {"fleet": {"hosts": hosts, "vars": variables}}
    return json.dumps({"all": {"children": groups}}, indent=2) + "\n"


def _hosts_file(fleet: Fleet) -> str:
    lines = ["127.0.0.1 localhost", "::1 localhost ip6-localhost ip6-loopback"]
    for one in fleet.hosts:
        lines += [f"{one.address} {one.name}", f"{one.address6} {one.name}"]
    return "\n".join(lines) + "\n"


def _write_state(fleet: Fleet, *, owned: bool) -> None:
    """`owned` fleets end with this process: `clean` removes them once it is dead."""
    described = {
        "owner": [os.getpid(), start_time(os.getpid())] if owned else None,
        "hosts": [[one.name, one.number, one.machine_id] for one in fleet.hosts],
    }
    (fleet.state / "fleet.json").write_text(json.dumps(described) + "\n")


def up(
    name: str,
    *,
    count: int,
    keep: bool = False,
    say: Say = say,
    recipe: root.Recipe = root.DEBIAN_12,
) -> Fleet:
    """Boots `count` hosts called NAME1, NAME2, … and returns when all are running.

    With `keep` they may outlive this process. Whatever goes wrong, nothing is left behind.
    Raises FileExistsError when the fleet exists, RuntimeError when a host does not boot.
    """
    _check_machine()
    if not NAME.fullmatch(name):
        raise ValueError(f"fleet name {name!r}: at most 9 of a-z, 0-9 and -, a letter first")
    lower = root.build(recipe)
    if name in orphans():
        say(f"removing fleet {name} of a killed run")
        down(name)
    STATE.mkdir(mode=0o755, exist_ok=True)
    try:
        (STATE / name).mkdir(mode=0o700)
    except FileExistsError:
        raise FileExistsError(
            f"fleet {name} exists: python -m tests.fleet.hosts down --name {name}"
        ) from None
    try:
        fleet = _boot(name, count, lower=lower, say=say)
        if keep:
            _write_state(fleet, owned=False)
        return fleet
    except BaseException:
        down(name)
        raise


def _boot(name: str, count: int, *, lower: Path, say: Say) -> Fleet:
    begin = time.monotonic()
    hosts = tuple(host.new(name, number, state=STATE / name) for number in range(1, count + 1))
    fleet = Fleet(name, hosts)
    _write_state(fleet, owned=True)
    (fleet.state / "mux").mkdir(mode=0o700)
    network.create(name)
    login = _keygen(fleet.state / "id_ed25519", comment=f"throughline-fleet {name}")
    host_key = fleet.state / "ssh_host_ed25519_key"
    kind, key, *_ = _keygen(host_key, comment=name).split()
    known = "".join(f"{one.name} {kind} {key}\n" for one in hosts)
    (fleet.state / "known_hosts").write_text(known)
    (fleet.state / "ssh_config").write_text(_ssh_config(fleet))
    fleet.inventory.write_text(_inventory(fleet))
    for one in hosts:
        host.write_clone(one, public_key=login, host_key=host_key, names=_hosts_file(fleet))
        host.start(one, root=lower)
    for one in hosts:
        host.wait_running(one, ssh=fleet.ssh)
        say(f"{one.name} {one.address} is running ({time.monotonic() - begin:.1f} s)")
    return fleet


def load(name: str) -> Fleet:
    """The fleet called `name`. Raises FileNotFoundError when there is none."""
    described = json.loads((STATE / name / "fleet.json").read_text())
    hosts = (
        Host(one, name, number, STATE / name / one, machine_id)
        for one, number, machine_id in described["hosts"]
    )
    return Fleet(name, tuple(hosts))


def _end_ssh_masters(state: Path) -> None:
    """Ends the ssh processes that keep connections open, and with them the network namespace."""
    for socket in state.glob("mux/*"):
        subprocess.run(
            ["ssh", "-F", "none", "-o", f"ControlPath={socket}", "-O", "exit", "fleet"],
            capture_output=True,
        )


def down(name: str) -> None:
    """Kills all hosts of a fleet and removes all its files, also of a fleet that is half made."""
    if not NAME.fullmatch(name):
        raise ValueError(f"fleet name {name!r}: at most 9 of a-z, 0-9 and -, a letter first")
    _end_ssh_masters(STATE / name)
    cgroup.kill(cgroups.fleet(name))
    cgroups.remove(cgroups.fleet(name))
    network.remove(name)
    if (STATE / name).exists():
        shutil.rmtree(STATE / name)
    if STATE.exists() and not any(STATE.iterdir()):
        STATE.rmdir()


def names() -> list[str]:
    """The names of all fleets with state files or cgroups."""
    found: set[str] = set()
    for directory in (STATE, cgroups.all_fleets()):
        if directory.is_dir():
            found.update(entry.name for entry in directory.iterdir() if entry.is_dir())
    return sorted(found)


def orphans() -> list[str]:
    """The fleets whose owner has ended, or whose state file is missing."""
    found = []
    for name in names():
        try:
            owner = json.loads((STATE / name / "fleet.json").read_text())["owner"]
        except FileNotFoundError:
            found.append(name)
            continue
        if owner is not None and start_time(owner[0]) != owner[1]:
            found.append(name)
    return found


@contextmanager
def fleet(
    name: str, *, count: int, say: Say = say, recipe: root.Recipe = root.DEBIAN_12
) -> Iterator[Fleet]:
    """A fleet that ends with the block: at its end, after an exception, Ctrl-C or SIGTERM.

    To be entered from the main thread only, since it sets signal handlers.
    """
    with interruptible():
        running = up(name, count=count, say=say, recipe=recipe)
        try:
            yield running
        finally:
            down(name)


if __name__ == "__main__":
    from tests.fleet.cli import main

    sys.exit(main())
