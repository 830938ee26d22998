"""Probes in services with a seccomp filter: the agent decides by a trial, and the service lives on.

On a kernel of 6.11 to 6.13 without the fix the group `tls` must be off.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.fixtures.paths import SERVICES
from tests.fixtures.probed import Counter
from tests.fixtures.secure import Secure, get
from tests.fixtures.traced import Traced
from throughline.features import groups
from throughline.probes import uprobes

COUNT = 23
EXIT_GROUP = 231


@pytest.fixture
def counter(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counter]:
    """Counts what the trial's probe sees, in place of a program that does nothing."""
    made = Counter(kind := uprobes.trial())

    @contextmanager
    def counting(wanted: uprobes.Kind) -> Iterator[int]:
        assert wanted is kind
        yield made.fd

    monkeypatch.setattr(uprobes, "_constant", counting)
    yield made
    made.close()


def test_the_trial_returns_through_a_probe(counter: Counter) -> None:
    kind = uprobes.trial()
    try:
        uprobes.try_returns(kind)
    except uprobes.ReturnsRefusedError as error:
        pytest.skip(f"this kernel asks the filter: {error.strerror}")
    assert counter.hits == 1


def test_a_child_that_dies_turns_tls_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """A filter kills at `exit_group` on any kernel, as 6.12.13 does at `uretprobe`."""
    monkeypatch.setattr(uprobes, "_DENIED", (EXIT_GROUP,))
    with pytest.raises(uprobes.ReturnsRefusedError) as refused:
        uprobes.try_returns(uprobes.trial())
    assert refused.value.strerror == "signal 31"
    group = groups.without_returns(refused.value)
    assert group.state == "off" and not group.wanted
    assert "return probes kill processes that have a seccomp filter" in group.reason


def test_a_trial_that_cannot_be_made_turns_tls_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uprobes, "_FILTERED", "import sys; sys.exit('no such thing')")
    with pytest.raises(uprobes.ReturnsRefusedError) as refused:
        uprobes.try_returns(uprobes.trial())
    group = groups.without_returns(refused.value)
    assert group.state == "off"
    assert "is not known (no such thing)" in group.reason


def system_service() -> list[str]:
    """The system calls of systemd's group @system-service, without those of probes."""
    sets: dict[str, list[str]] = {}
    try:
        said = subprocess.run(
            ["systemd-analyze", "syscall-filter", "--no-pager"],
            check=True,
            capture_output=True,
            text=True,
            timeout=60,
        ).stdout
    except FileNotFoundError:
        pytest.skip("systemd-analyze is not installed")
    for line in said.splitlines():
        word = line.strip()
        if line.startswith("@"):
            found = sets.setdefault(word, [])
        elif word and not word.startswith("#"):
            found.append(word)

    def members(name: str) -> set[str]:
        if not name.startswith("@"):
            return {name}
        return {one for word in sets[name] for one in members(word)}

    return sorted(members("@system-service") - {"uretprobe", "uprobe"})


@pytest.mark.parametrize("action", ["kill", "errno"])
def test_nginx_with_the_filter_of_a_service(tmp_path: Path, action: str) -> None:
    allowed = tmp_path / "allowed"
    allowed.write_text("\n".join(system_service()))
    prefix = [sys.executable, str(SERVICES / "filtered.py"), action, str(allowed)]
    with Traced() as traced:
        secure = Secure(traced)
        port = secure.nginx("server", prefix=prefix)
        (traced.directory / "server" / "files" / "23").write_text("twenty-three\n")
        status = traced.status()
        assert status is not None
        tls = status["groups"]["tls"]
        if tls["state"] == "on":
            secure.wait_found("libssl.so", processes=3)
        processes = (traced.cgroup / "server" / "cgroup.procs").read_text().split()
        assert len(processes) == 3
        for pid in processes:
            assert "\nSeccomp:\t2\n" in Path(f"/proc/{pid}/status").read_text()
        for _ in range(COUNT):
            assert get(port, secure.trust(), "/files/23", {}) == b"twenty-three\n"
        assert (traced.cgroup / "server" / "cgroup.procs").read_text().split() == processes
        if tls["state"] == "off":
            assert "seccomp" in tls["reason"], tls
            print(f"{os.uname().release}: {tls['reason']}")
            return
        spans = traced.wait_spans(COUNT, where=lambda span: span.kind == "SERVER")
        assert len(spans) == COUNT
