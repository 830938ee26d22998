"""Which files are Node.js, and how many processes were started with the preload."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from throughline.probes.provider import Answer, Found, Probed, Process
from throughline.runtimes.node.provider import NodeProvider
from throughline.runtimes.node.units import REFUSED
from throughline.steps import finish

OPTION = b"NODE_OPTIONS=--a --require=/run/credentials/a.service/throughline-context.cjs"


def test_node_is_found() -> None:
    node = shutil.which("node")
    if node is None:
        pytest.skip("Node.js is not installed")
    for path, answer in ((node, Found()), (sys.executable, Answer.NOT_MINE)):
        file = os.open(path, os.O_RDONLY)
        try:
            assert NodeProvider().find(file) == answer, path
        finally:
            os.close(file)


def write(
    directory: Path, environment: bytes, *, words: bytes = b"node\0", cgroup: str = "/"
) -> None:
    """A process whose environment is at 100 in its memory."""
    directory.mkdir(exist_ok=True)
    (directory / "cmdline").write_bytes(words)
    (directory / "cgroup").write_text(f"0::{cgroup}\n")
    numbers = " ".join(["0"] * 46 + ["100", str(100 + len(environment)), "0"])
    (directory / "stat").write_text(f"1 (a) b) S {numbers}\n")
    (directory / "mem").write_bytes(bytes(100) + environment)


def preloaded(provider: NodeProvider, probed: Probed) -> object:
    return provider.describe(probed)["preloaded"]


def test_processes_with_the_preload_are_counted(tmp_path: Path) -> None:
    environments = {
        1: b"A=1\0" + OPTION + b"\0B=2\0",
        2: OPTION,
        3: b"NODE_OPTIONS=--require=/srv/context.cjs\0",
        4: b"OTHER_" + OPTION,
        5: b"",
    }
    for pid, environment in environments.items():
        write(tmp_path / str(pid), environment)
    provider = NodeProvider(tmp_path)
    probed = Probed(0, (), tuple(Process(pid, 7, 0, 0) for pid in range(1, 8)))
    assert preloaded(provider, probed) == 0
    finish(provider.tick([probed]))
    assert preloaded(provider, probed) == 2
    assert provider.failures == {}  # processes 6 and 7 have ended
    # another process of that id has another environment
    write(tmp_path / "1", b"")
    finish(provider.tick([probed]))
    assert preloaded(provider, probed) == 2
    again = Probed(0, (), (Process(1, 8, 0, 0), Process(2, 7, 0, 0)))
    finish(provider.tick([again]))
    assert preloaded(provider, again) == 1


def test_a_process_that_cannot_be_read_is_counted_and_looked_at_again(tmp_path: Path) -> None:
    write(tmp_path / "1", OPTION)
    (tmp_path / "1" / "mem").rename(tmp_path / "away")
    provider = NodeProvider(tmp_path)
    probed = Probed(0, (), (Process(1, 7, 0, 0),))
    for _ in range(3):
        finish(provider.tick([probed]))
    assert provider.failures == {"process_unreadable": 1}
    assert preloaded(provider, probed) == 0
    (tmp_path / "away").rename(tmp_path / "1" / "mem")
    finish(provider.tick([probed]))
    assert preloaded(provider, probed) == 1
    assert provider.failures == {"process_unreadable": 1}


def test_what_root_forks_has_the_preload_as_an_argument(tmp_path: Path) -> None:
    option = b"--require=/run/credentials/a.service/throughline-context.cjs"
    for pid, words in enumerate(
        (b"node\0" + option + b"\0/srv/a.js\0", b"node\0a\0" + option[10:]), 1
    ):
        write(tmp_path / str(pid), b"", words=words)
    provider = NodeProvider(tmp_path)
    probed = Probed(0, (), tuple(Process(pid, 7, 0, 0) for pid in (1, 2)))
    finish(provider.tick([probed]))
    assert preloaded(provider, probed) == 1


def configure(etc: Path, *units: str, refused: dict[str, str] | None = None) -> None:
    for unit in units:
        directory = etc / f"systemd/system/{unit}.d"
        directory.mkdir(parents=True)
        (directory / "throughline-node.conf").touch()
    if refused is not None:
        (etc / "throughline").mkdir(parents=True, exist_ok=True)
        (etc / REFUSED).write_text(json.dumps(refused))


class Host:
    """Processes of units, and what is configured."""

    def __init__(self, directory: Path) -> None:
        self.proc, self.etc = directory / "proc", directory / "etc"
        self.proc.mkdir()
        self.now = 0.0
        self.provider = NodeProvider(self.proc, self.etc, lambda: self.now)
        self.processes: tuple[Process, ...] = ()

    def start(self, cgroup: str, environment: bytes = b"") -> None:
        pid = len(self.processes) + 1
        write(self.proc / str(pid), environment, cgroup=cgroup)
        self.processes += (Process(pid, 7, 0, 0),)

    def units(self) -> dict[str, tuple[int, int, str, str]]:
        finish(self.provider.tick([Probed(0, (), self.processes)]))
        found: Any = self.provider.describe(Probed(0, (), self.processes))["units"]
        return {name: tuple(unit.values()) for name, unit in found.items()}


def test_units_say_what_is_to_be_done(tmp_path: Path) -> None:
    host = Host(tmp_path)
    configure(
        host.etc, "a.service", "old.service", "many@.service", refused={"no.service": "it is so"}
    )
    host.start("/system.slice/a.service", OPTION)
    host.start("/system.slice/a.service/worker")
    host.start("/system.slice/old.service")
    host.start("/system.slice/system-many.slice/many@1.service")
    host.start("/system.slice/no.service")
    host.start("/system.slice/other.service")
    host.start("/system.slice/was.service", OPTION)
    host.start("/system.slice/docker-1.scope")
    host.start("/user.slice/user-7.slice/user@7.service/app.slice/a.service")
    host.start("/")
    assert host.units() == {
        "": (1, 0, "no_service", ""),
        "a.service": (2, 1, "active", ""),
        "old.service": (1, 0, "not_restarted", ""),
        "many@1.service": (1, 0, "not_restarted", ""),
        "no.service": (1, 0, "refused", "it is so"),
        "other.service": (1, 0, "not_configured", ""),
        "was.service": (1, 1, "removed", ""),
        "docker-1.scope": (1, 0, "no_service", ""),
        "user@7.service": (1, 0, "no_service", ""),
    }
    assert host.provider.failures == {}
    # site.yml has run again
    configure(host.etc, "other.service", refused={"old.service": "no"})
    (host.etc / "systemd/system/old.service.d/throughline-node.conf").unlink()
    assert host.units()["other.service"] == (1, 0, "not_configured", "")
    host.now = 10.0
    assert host.units()["other.service"] == (1, 0, "not_restarted", "")
    assert host.units()["old.service"] == (1, 0, "refused", "no")


@pytest.mark.parametrize("text", ["", "[]", "{", "\\xff"])
def test_a_damaged_list_of_what_was_refused(tmp_path: Path, text: str) -> None:
    host = Host(tmp_path)
    configure(host.etc, refused={})
    (host.etc / REFUSED).write_text(text)
    host.start("/system.slice/a.service")
    for now in (0.0, 10.0):
        host.now = now
        assert host.units() == {"a.service": (1, 0, "not_configured", "")}
    assert host.provider.failures == {"refusals_unreadable": 1}


def test_a_drop_in_that_cannot_be_looked_for(tmp_path: Path) -> None:
    host = Host(tmp_path)
    (host.etc / "systemd/system").mkdir(parents=True)
    loop = host.etc / "systemd/system/a.service.d"
    loop.symlink_to(loop)
    host.start("/system.slice/a.service")
    for now in (0.0, 10.0):
        host.now = now
        assert host.units() == {"a.service": (1, 0, "unknown", "")}
    assert host.provider.failures == {"drop_in_unreadable": 1}
