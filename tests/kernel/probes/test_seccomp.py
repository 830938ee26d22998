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
from throughline.features import reasons
from throughline.probes import trials
from throughline.probes.arch import x86_64
from throughline.probes.uprobes import Kind

COUNT = 23
EXIT_GROUP = 231


@pytest.fixture
def counter(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counter]:
    """Counts what the trial's probe sees, in place of a program that does nothing."""
    made = Counter(kind := trials.find_kind())

    @contextmanager
    def counting(wanted: Kind) -> Iterator[int]:
        assert wanted is kind
        yield made.fd

    monkeypatch.setattr(trials, "_loaded", counting)
    yield made
    made.close()


def test_the_trial_returns_through_a_probe(counter: Counter) -> None:
    kind = trials.find_kind()
    try:
        trials.try_returns(kind)
    except trials.ReturnsRefusedError as error:
        pytest.skip(f"this kernel asks the filter: {error.strerror}")
    assert counter.hits == 1


def test_a_child_that_dies_turns_tls_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a kernel of 6.12.13 does to `uretprobe` any kernel does to `exit_group`."""
    monkeypatch.setattr(x86_64, "PROBE_SYSCALLS", (EXIT_GROUP,))
    with pytest.raises(trials.ReturnsRefusedError) as refused:
        trials.try_returns(trials.find_kind())
    assert refused.value.strerror == "signal 31"
    group = reasons.without_returns(refused.value)
    assert group.state == "off" and not group.wanted
    assert "return probes kill processes that have a seccomp filter" in group.reason


def test_a_trial_that_cannot_be_made_turns_tls_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trials, "_FILTERED", "import sys; sys.exit('no such thing')")
    with pytest.raises(trials.ReturnsRefusedError) as refused:
        trials.try_returns(trials.find_kind())
    group = reasons.without_returns(refused.value)
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
