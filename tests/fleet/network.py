"""The private network of a fleet: one network namespace with one bridge, and no way out of it.

The namespace holds the bridge (`10.77.0.1/24`, `fd77::1/64`) and the host side of every veth pair.
Nothing routes: packets of one fleet are seen by that fleet only, so that every fleet can use the
same addresses.
"""

from __future__ import annotations

import socket
import subprocess
import threading
from pathlib import Path

from tests.fixtures import netns

BRIDGE = "fleet0"
GATEWAY = "10.77.0.1"
GATEWAY6 = "fd77::1"
PREFIX_LENGTH = 24
PREFIX_LENGTH6 = 64


def address(number: int) -> str:
    """The IPv4 address of the fleet's host `number` (1 …)."""
    return f"10.77.0.{10 + number}"


def address6(number: int) -> str:
    """The IPv6 address of the fleet's host `number` (1 …)."""
    return f"fd77::{10 + number}"


def namespace(name: str) -> str:
    """The name of the fleet's network namespace, as `ip netns` shows it."""
    return f"tl-{name}"


def namespace_path(name: str) -> Path:
    """The file that holds the fleet's network namespace."""
    return Path("/run/netns") / namespace(name)


def inside(name: str) -> list[str]:
    """The words to put before a command that is to run in the fleet's network namespace.

    `ip netns exec` would also replace /sys, and nspawn needs the cgroup mounts there.
    """
    return ["nsenter", f"--net={namespace_path(name)}"]


def create(name: str) -> None:
    """Makes the namespace and its bridge. Raises FileExistsError when the namespace exists."""
    if namespace_path(name).exists():
        raise FileExistsError(f"network namespace {namespace(name)} exists")
    subprocess.run(["ip", "netns", "add", namespace(name)], check=True)
    commands = f"""
link set lo up
link add {BRIDGE} type bridge
addr add {GATEWAY}/{PREFIX_LENGTH} dev {BRIDGE}
addr add {GATEWAY6}/{PREFIX_LENGTH6} dev {BRIDGE} nodad
link set {BRIDGE} up
"""
    subprocess.run(
        ["ip", "-n", namespace(name), "-batch", "-"], input=commands, text=True, check=True
    )


def remove(name: str) -> None:
    """Removes the namespace with all its interfaces; nothing happens where it is missing."""
    if namespace_path(name).exists():
        subprocess.run(["ip", "netns", "delete", namespace(name)], check=True)


def listen(name: str, *, host: str = GATEWAY, port: int = 0) -> socket.socket:
    """A TCP socket that listens inside the fleet's network namespace.

    A socket keeps the namespace it was made in, so only a short-lived thread has to enter it.
    """
    made: list[socket.socket] = []
    failed: list[OSError] = []

    def enter_and_listen() -> None:
        try:
            with namespace_path(name).open("rb") as file, netns.entered(file.fileno()):
                made.append(socket.create_server((host, port), backlog=128))
        except OSError as error:
            failed.append(error)

    thread = threading.Thread(target=enter_and_listen)
    thread.start()
    thread.join()
    if failed:
        raise failed[0]
    return made[0]
