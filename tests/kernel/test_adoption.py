"""The agent dies, starts again, reloads, stops: traffic and propagation do not notice."""

from __future__ import annotations

import hashlib
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from tests.kernel import kernel_objects
from tests.kernel.load import Load, start_chain, start_nginx
from tests.kernel.operated import Operated

CGROUP_PROGRAMS = {"tl_ingress", "tl_egress", "tl_sockops"}


@pytest.fixture
def traced() -> Iterator[Operated]:
    with Operated() as found:
        yield found


def _cgroup_links(traced: Operated) -> dict[str, int]:
    found = kernel_objects.pinned_links(traced.bpffs)
    return {name: number for name, number in found.items() if "@" in name}


def test_kill_under_load_is_not_noticed(traced: Operated) -> None:
    chain = start_chain(traced)
    links = _cgroup_links(traced)
    assert {name.partition("@")[0] for name in links} == CGROUP_PROGRAMS
    with Load(chain) as load:
        load.wait(1.0)
        assert traced.agent is not None
        traced.agent.kill()
        traced.agent.wait()
        killed = time.monotonic()
        restarted = load.wait(1.5)
        traced.start_agent()
        again = time.monotonic()
        load.wait(1.0)
    assert not load.failures
    for since, until in ((0.0, killed), (killed, restarted), (restarted, again), (again, 1e9)):
        assert sum(since <= answer.at < until for answer in load.answers) > 20
    assert not load.untraced()
    ids = load.trace_ids()
    assert len(set(ids)) == len(ids), "two requests of the client are one trace"
    assert _cgroup_links(traced) == links, "the links were adopted, not made anew"
    # What the dead agent had taken out of the ring buffer and not sent yet died with it: at most
    # the last second. What came after it waited in the kernel.
    late = {a.traceparents[0].split("-")[1] for a in load.answers if a.at >= killed}
    spans = traced.wait_spans(3 * len(late), where=lambda span: span.trace_id in late)
    assert len(spans) == 3 * len(late), traced.counters()
    status = traced.status()
    assert status is not None and status["healthy"]


def test_killed_while_it_attaches(traced: Operated) -> None:
    assert traced.agent is not None
    assert traced.stop_agent() == 0
    assert not traced.pins()
    chance = random.Random(20)
    seen = set()
    for _ in range(20):
        traced.start_agent(wait=False)
        deadline = time.monotonic() + 5
        if chance.random() < 0.8:  # else while Python starts
            while not any(traced.bpffs.iterdir()) and time.monotonic() < deadline:
                time.sleep(0.001)
            time.sleep(chance.uniform(0, 0.15))
        else:
            time.sleep(chance.uniform(0, 0.3))
        traced.agent.kill()
        traced.agent.wait()
        seen.add(len(traced.pins()))
        if chance.random() < 0.3:  # else the next one adopts what there is
            assert traced.command("detach").returncode == 0
            assert not traced.pins()
    assert len(seen) > 1, "always killed at the same point"
    traced.start_agent()
    chain = start_chain(traced)
    with Load(chain) as load:
        load.wait(0.5)
    assert not load.failures and not load.untraced()
    assert len(traced.wait_spans(3 * len(load.answers))) == 3 * len(load.answers)
    ids = kernel_objects.held_by(traced.agent.pid)
    assert traced.stop_agent() == 0
    assert not traced.pins()
    assert not kernel_objects.left(ids)


def test_detach_after_a_crash_and_with_nothing(traced: Operated) -> None:
    chain = start_chain(traced)
    assert traced.agent is not None
    ids = kernel_objects.held_by(traced.agent.pid)
    assert ids["prog"] and ids["map"] and ids["link"]
    with Load(chain) as load:
        load.wait(0.3)
        traced.stop_agent(signal.SIGKILL)
        assert traced.pins()
        for _ in range(2):
            run = traced.command("detach")
            assert (run.returncode, run.stderr) == (0, "")
            assert not traced.pins()
        detached = time.monotonic()
        load.wait(0.3)
    assert not load.failures
    assert all(not a.traceparents for a in load.answers if a.at > detached)
    assert not kernel_objects.left(ids)


def test_detach_where_there_is_no_bpffs(traced: Operated) -> None:
    plain = traced.directory / "plain"
    plain.mkdir()
    for where in (plain, plain / "missing"):
        run = traced.command("detach", environment={"THROUGHLINE_BPFFS": str(where)})
        assert (run.returncode, run.stderr) == (0, "")


def test_a_second_agent_is_refused(traced: Operated) -> None:
    assert traced.agent is not None
    links = _cgroup_links(traced)
    second = traced.command("run")
    assert second.returncode == 3
    assert f"another agent (pid {traced.agent.pid}) serves {traced.bpffs}" in second.stderr
    assert "fix: stop it" in second.stderr
    detach = traced.command("detach")
    assert detach.returncode == 1
    assert f"pid {traced.agent.pid}" in detach.stderr
    assert _cgroup_links(traced) == links
    status = traced.status()
    assert status is not None and status["pid"] == traced.agent.pid and status["healthy"]


def test_reload_under_load(traced: Operated) -> None:
    chain = start_chain(traced)
    assert traced.agent is not None
    pid = traced.agent.pid
    links = _cgroup_links(traced)
    with Load(chain) as load:
        load.wait(0.7)
        traced.configure(sampling={"sampler": "always_off"})
        traced.reload()
        unsampled = load.wait(0.1)
        load.wait(0.7)
        # a mistake in the file: what is in force stays in force
        good = (traced.directory / "config.yaml").read_text()
        (traced.directory / "config.yaml").write_text("sampling: {sampler: often}\n")
        traced.agent.send_signal(signal.SIGHUP)
        traced.wait_log("not reloaded: .*config.yaml.*sampler")
        load.wait(0.3)
        (traced.directory / "config.yaml").write_text(good)
        # and a storm of signals: none may hit the moment without a handler
        for _ in range(30):
            traced.agent.send_signal(signal.SIGHUP)
            time.sleep(0.03)
        load.wait(0.5)
    traced.wait_running()
    assert traced.agent.pid == pid
    assert not load.failures
    assert not load.untraced()
    flags = {a.traceparents[0][-2:] for a in load.answers if a.at > unsampled}
    assert flags == {"00"}
    assert {a.traceparents[0][-2:] for a in load.answers} == {"00", "01"}
    assert _cgroup_links(traced) == links
    sampled = sum(a.traceparents[0].endswith("01") for a in load.answers)
    assert len(traced.wait_spans(3 * sampled)) == 3 * sampled


def test_reload_takes_headers_off_and_on(traced: Operated) -> None:
    chain = start_chain(traced)
    with Load(chain) as load:
        load.wait(0.5)
        traced.configure(propagation={"headers": "off"})
        traced.reload()
        off = load.wait(0.1)
        assert not any(name.startswith("tl_sockops") for name in _cgroup_links(traced))
        back = load.wait(0.7)
        traced.configure(propagation={"headers": "auto"})
        traced.reload()
        on = load.wait(0.1)
        load.wait(0.5)
    assert not load.failures
    assert all(not a.traceparents for a in load.answers if off < a.at < back - 0.1)
    # connections made while the group was off stay outside of the sockhash
    assert any(a.traceparents for a in load.answers if a.at > on)
    status = traced.wait_running()
    assert status["groups"]["headers"]["state"] == "on" and status["healthy"]


def test_stop_while_it_starts(traced: Operated) -> None:
    assert traced.stop_agent() == 0
    for delay in (0.25, 0.35, 0.45, 0.55):
        traced.start_agent(wait=False)
        assert traced.agent is not None
        time.sleep(delay)
        code = traced.stop_agent()
        # before the agent's own code runs nothing is attached, and Python just ends
        assert code in (0, -signal.SIGTERM)
        assert not traced.pins(), f"stopped after {delay} s"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stop_under_load(traced: Operated, number: signal.Signals) -> None:
    chain = start_chain(traced)
    assert traced.agent is not None
    ids = kernel_objects.held_by(traced.agent.pid)
    with Load(chain) as load:
        load.wait(0.7)
        assert traced.stop_agent(number) == 0
        stopped = time.monotonic()
        load.wait(0.7)
    assert not load.failures
    assert all(not a.traceparents for a in load.answers if a.at > stopped)
    assert any(a.at > stopped for a in load.answers)
    assert not traced.pins()
    assert traced.status() is None, "the status file goes with the agent"
    assert not kernel_objects.left(ids)


def _curl(traced: Operated, url: str, *options: str) -> subprocess.Popen[bytes]:
    return traced.spawn("client", ["curl", "-sS", *options, url], stdout=subprocess.PIPE)


def test_large_responses_in_flight_lose_no_byte(traced: Operated) -> None:
    """curl reads from a socket in the sockhash while the agent stops, and while it dies."""
    static = start_nginx(traced, "static", onward=1)
    size = 24 << 20
    data = os.urandom(1 << 20) * (size >> 20)
    (traced.directory / "static" / "files" / "big").write_bytes(data)
    (traced.cgroup / "client").mkdir()
    time.sleep(1.2)
    digest = hashlib.sha256(data).hexdigest()
    url = f"http://127.0.0.1:{static}/files/big"
    check = [sys.executable, "-c", _DIGEST, url]
    fast = [traced.spawn("client", check, stdout=subprocess.PIPE) for _ in range(2)]
    time.sleep(0.5)
    assert traced.stop_agent() == 0
    for process in fast:
        assert process.stdout is not None
        assert process.stdout.read().decode().split() == [str(size), digest]
    assert "unread data" not in traced.log()
    assert not traced.pins()


# reads for about two seconds, so that the stop comes in between
_DIGEST = """
import hashlib, sys, time, urllib.request
found, size = hashlib.sha256(), 0
with urllib.request.urlopen(sys.argv[1]) as answer:
    while data := answer.read(65536):
        found.update(data)
        size += len(data)
        time.sleep(0.004)
print(size, found.hexdigest())
"""


def test_a_reader_slower_than_the_stop_keeps_its_bytes(traced: Operated) -> None:
    static = start_nginx(traced, "static", onward=1)
    size = 9 << 20
    data = os.urandom(size)
    (traced.directory / "static" / "files" / "big").write_bytes(data)
    (traced.cgroup / "client").mkdir()
    time.sleep(1.2)
    url = f"http://127.0.0.1:{static}/files/big"
    slow = _curl(traced, url, "--limit-rate", "1M")
    out: list[bytes] = []
    time.sleep(1.0)
    assert traced.agent is not None
    ids = kernel_objects.held_by(traced.agent.pid)
    fionread_broken = (traced.status() or {})["fionread_broken"]
    traced.agent.send_signal(signal.SIGTERM)
    assert slow.stdout is not None
    out.append(slow.stdout.read())
    assert traced.agent.wait(20) == 0
    assert slow.wait(20) == 0
    assert hashlib.sha256(b"".join(out)).digest() == hashlib.sha256(data).digest()
    if fionread_broken:
        assert re.search(r"1 connections have unread data; the sockhash \S+ stays", traced.log())
        assert traced.pins() == ["abi1", "abi1/tl_socks"]
    assert traced.command("detach").returncode == 0
    assert not traced.pins()
    assert not kernel_objects.left(ids)
