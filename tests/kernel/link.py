"""Two network namespaces and a link between them that a test owns: clean, or lossy by a plan.

    with Link(mtu=1500) as link:
        with link.left: …  # sockets that this thread makes now belong to the left end
        link.addresses(4)  # ("198.51.100.1", "198.51.100.2")

A clean link is a veth pair. A lossy one is a pair of taps, and a process between them that drops,
repeats and reorders TCP frames with payload by a seeded plan: the kernel here has no netem. The
namespaces have no names, so that nothing is left when this process ends, however it does.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import random
import selectors
import struct
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

_CLONE_NEWNET = 0x40000000
_TUNSETIFF, _IFF_TUN, _IFF_TAP, _IFF_NO_PI = 0x400454CA, 0x0001, 0x0002, 0x1000
_libc = ctypes.CDLL(None, use_errno=True)

ADDRESSES = {4: ("198.51.100.1", "198.51.100.2"), 6: ("2001:db8:5::1", "2001:db8:5::2")}
_PREFIX = {4: 24, 6: 64}


@dataclass(frozen=True, slots=True)
class Loss:
    """What happens to TCP frames with payload, each as a share of them; `first` are always lost."""

    drop: float = 0.0
    repeat: float = 0.0
    reorder: float = 0.0
    first: int = 0  # so many of the left end's
    seed: int = 23


class End:
    """One namespace. `with` puts the calling thread, and only it, inside."""

    def __init__(self, interface: str) -> None:
        self.interface = interface
        self._home: list[int] = []
        made = threading.Thread(target=self._make)
        made.start()
        made.join()

    def _make(self) -> None:
        _check(_libc.unshare(_CLONE_NEWNET), "unshare")
        self.fd = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)

    @property
    def path(self) -> str:
        return f"/proc/{os.getpid()}/fd/{self.fd}"

    def __enter__(self) -> End:
        self._home.append(os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC))
        _check(_libc.setns(self.fd, _CLONE_NEWNET), "setns")
        return self

    def __exit__(self, *_: object) -> None:
        home = self._home.pop()
        _check(_libc.setns(home, _CLONE_NEWNET), "setns")
        os.close(home)

    def run(self, *command: str) -> str:
        """Runs a command in the namespace to its end; returns what it printed."""
        run = subprocess.run(
            ["nsenter", f"--net={self.path}", *command], capture_output=True, text=True, timeout=20
        )
        if run.returncode:
            raise RuntimeError(f"{' '.join(command)}: {run.stderr}")
        return run.stdout

    def sysctl(self, name: str, value: str) -> None:
        with self:
            (Path("/proc/sys/net") / name).write_text(value)

    def statistics(self) -> dict[str, int]:
        """The counters of /proc/net/snmp and netstat of the namespace, such as RetransSegs."""
        found: dict[str, int] = {}
        with self:
            for table in ("snmp", "netstat"):
                lines = Path(f"/proc/thread-self/net/{table}").read_text().splitlines()
                for names, values in zip(lines[::2], lines[1::2], strict=True):
                    pairs = zip(names.split()[1:], values.split()[1:], strict=True)
                    found.update({name: int(value) for name, value in pairs})
        return found


class Link:
    """See the module. `offloads` are GSO, TSO and GRO of both ends.

    `routed`: packets without Ethernet header, as those of a VPN.
    """

    def __init__(
        self,
        *,
        mtu: int = 1500,
        offloads: bool = True,
        sack: bool = True,
        loss: Loss | None = None,
        routed: bool = False,
    ) -> None:
        self.mtu = mtu
        self._routed = routed
        self._offloads = offloads
        self._sack = sack
        self._loss = Loss() if routed else loss
        self._stack = ExitStack()

    def __enter__(self) -> Link:
        with ExitStack() as stack:
            self.left, self.right = End("left"), End("right")
            for end in (self.left, self.right):
                stack.callback(os.close, end.fd)
            if self._loss is None:
                self.left.run(
                    *("ip", "link", "add", "left", "type", "veth"),
                    *("peer", "name", "right", "netns", self.right.path),
                )
                stack.callback(self.left.run, "ip", "link", "delete", "left")
            else:
                self._relay(self._loss, stack)
            for index, end in enumerate((self.left, self.right)):
                self._configure(end, index)
            if not self._routed:
                self._introduce()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @staticmethod
    def addresses(version: int) -> tuple[str, str]:
        """Of the left and of the right end."""
        return ADDRESSES[version]

    def _configure(self, end: End, index: int) -> None:
        end.run("ip", "link", "set", "lo", "up")
        for version, pair in ADDRESSES.items():
            address = f"{pair[index]}/{_PREFIX[version]}"
            nodad = ["nodad"] if version == 6 else []
            end.run("ip", f"-{version}", "address", "add", address, "dev", end.interface, *nodad)
        end.run("ip", "link", "set", end.interface, "mtu", str(self.mtu), "up")
        end.sysctl("ipv4/tcp_sack", str(int(self._sack)))
        if self._loss is None:
            state = "on" if self._offloads else "off"
            offloads = [word for name in ("tso", "gso", "gro") for word in (name, state)]
            end.run("ethtool", "-K", end.interface, *offloads)

    def _introduce(self) -> None:
        """Each end knows the other's hardware address: nothing but TCP crosses the link."""
        pairs = ((self.left, self.right, 1), (self.right, self.left, 0))
        for end, other, index in pairs:
            shown = other.run("ip", "-o", "link", "show", other.interface)
            address = shown.split("link/ether ")[1].split()[0]
            for version in ADDRESSES:
                end.run(
                    *("ip", f"-{version}", "neighbour", "replace", ADDRESSES[version][index]),
                    *("lladdr", address, "dev", end.interface, "nud", "permanent"),
                )

    def _relay(self, loss: Loss, stack: ExitStack) -> None:
        taps = []
        kind = _IFF_TUN if self._routed else _IFF_TAP
        for end in (self.left, self.right):
            with end:
                tap = os.open("/dev/net/tun", os.O_RDWR)
            taps.append(tap)
            with end:
                request = struct.pack("16sH22x", end.interface.encode(), kind | _IFF_NO_PI)
                fcntl.ioctl(tap, _TUNSETIFF, request)
        plan = (loss.drop, loss.repeat, loss.reorder, loss.first, loss.seed)
        process = subprocess.Popen(
            [sys.executable, __file__, *map(str, taps), *map(str, plan)], pass_fds=taps
        )
        for tap in taps:
            os.close(tap)
        stack.callback(_end, process)

    @contextlib.contextmanager
    def captured(self, end: End | None = None, *, where: str = "tcp") -> Iterator[Path]:
        """Frames at an end's interface while the block runs, in a file that tcpdump has written."""
        end = end or self.left
        with tempfile.TemporaryDirectory(prefix="tl-") as directory:
            path = Path(directory) / "frames.pcap"
            path.touch()
            path.chmod(0o666)
            process = subprocess.Popen(
                [
                    *("nsenter", f"--net={end.path}", "tcpdump", "-i", end.interface, "-Un"),
                    *("--immediate-mode", "-s", "160", "-B", "16384", "-w", str(path), where),
                ],
                stderr=subprocess.PIPE,
                text=True,
            )
            try:
                assert process.stderr is not None
                while "listening on" not in (line := process.stderr.readline()):
                    assert line, "tcpdump has ended"
                yield path
            finally:
                _end(process)
                process.stderr.close()


def _end(process: subprocess.Popen[bytes] | subprocess.Popen[str]) -> None:
    process.terminate()
    try:
        process.wait(5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _check(result: int, call: str) -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{call}: {os.strerror(number)}")


# --- the process between the taps ---------------------------------------------------------------


def _has_payload(frame: bytes) -> bool:
    """TCP over IPv4 or IPv6 with at least one byte of payload."""
    kind = frame[12:14]
    if kind == b"\x08\x00" and frame[23] == 6:
        start, end = 14 + (frame[14] & 15) * 4, 14 + int.from_bytes(frame[16:18], "big")
    elif kind == b"\x86\xdd" and frame[20] == 6:
        start, end = 54, 54 + int.from_bytes(frame[18:20], "big")
    else:
        return False
    return end > start + (frame[start + 12] >> 4) * 4


class _Way:
    """Frames from one tap to the other."""

    def __init__(self, loss: Loss, seed: int, first: int) -> None:
        self._loss = loss
        self._random = random.Random(seed)
        self._first = first
        self._held: list[tuple[int, bytes]] = []  # how many frames may still overtake it

    def passes(self, frame: bytes) -> list[bytes]:
        """What leaves now that `frame` has come."""
        leaves = [frame]
        if _has_payload(frame):
            chance = self._random.random()
            if self._first:
                self._first -= 1
                leaves = []
            elif chance < self._loss.drop:
                leaves = []
            elif chance < self._loss.drop + self._loss.repeat:
                leaves = [frame, frame]
            elif chance < self._loss.drop + self._loss.repeat + self._loss.reorder:
                self._held.append((self._random.randint(1, 8), frame))
                return []
        late = [held for left, held in self._held if left <= 1]
        self._held = [(left - 1, held) for left, held in self._held if left > 1]
        return leaves + late

    def idle(self) -> list[bytes]:
        """Nothing has come for a while: nothing can overtake what is held back."""
        late = [held for _, held in self._held]
        self._held = []
        return late


def _run_relay(taps: tuple[int, int], loss: Loss) -> None:
    ways = {
        taps[0]: (taps[1], _Way(loss, loss.seed, loss.first)),
        taps[1]: (taps[0], _Way(loss, loss.seed + 1, 0)),
    }
    with selectors.DefaultSelector() as selector:
        for tap in taps:
            os.set_blocking(tap, False)
            selector.register(tap, selectors.EVENT_READ)
        while True:
            ready = selector.select(0.002)
            if not ready:
                for other, way in ways.values():
                    _write(other, way.idle())
                if not selector.select(0.2):
                    continue
            for key, _ in ready:
                other, way = ways[key.fd]
                for _ in range(64):
                    try:
                        frame = os.read(key.fd, 65536)
                    except BlockingIOError:
                        break
                    _write(other, way.passes(frame))


def _write(tap: int, frames: list[bytes]) -> None:
    for frame in frames:
        with contextlib.suppress(OSError):  # its end is down, or its queue is full: one more loss
            os.write(tap, frame)


if __name__ == "__main__":
    _left, _right = int(sys.argv[1]), int(sys.argv[2])
    _drop, _repeat, _reorder = map(float, sys.argv[3:6])
    _run_relay((_left, _right), Loss(_drop, _repeat, _reorder, int(sys.argv[6]), int(sys.argv[7])))
