"""No request fails and none loses its header when the agent is killed, starts, reloads or stops."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import subprocess
import sys
import time
from typing import Any

import pytest

from tests.fixtures import kernel_objects
from tests.fixtures.load import Answer, Load, start_chain, start_nginx
from tests.fixtures.operated import Operated
from tests.fixtures.waiting import poll
from throughline.bpf import fionread

CGROUP_PROGRAMS = {"tl_ingress", "tl_egress", "tl_sockops"}


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
    # The killed agent loses what it had read from the ring buffer and not sent: at most
    # the last second. Later records wait in the kernel.
    late = load.paths(since=killed)
    spans = traced.wait_spans(3 * len(late), where=lambda span: span.path in late)
    assert len(spans) == 3 * len(late), traced.counters()
    joined = {path for path in late if path.startswith("/new/") or not fionread.is_broken()}
    traces = {span.trace_id for span in spans if span.path in joined}
    assert len(traces) == len(joined) > 0, "each request is one trace"
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
        if chance.random() < 0.8:  # else while Python starts
            poll(traced.pins, seconds=5, every=0.001)
            time.sleep(chance.uniform(0, 0.15))
        else:
            time.sleep(chance.uniform(0, 0.3))
        traced.agent.kill()
        traced.agent.wait()
        seen.add(len(traced.pins()))
        if chance.random() < 0.3:  # else the next agent adopts what is pinned
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
        # with a mistake in the file the old configuration stays in force
        good = (traced.directory / "config.yaml").read_text()
        (traced.directory / "config.yaml").write_text("sampling: {sampler: often}\n")
        traced.agent.send_signal(signal.SIGHUP)
        traced.wait_log("not reloaded: .*config.yaml.*sampler")
        load.wait(0.3)
        (traced.directory / "config.yaml").write_text(good)
        # many signals at once: none may come at a moment without a handler
        for _ in range(30):
            traced.agent.send_signal(signal.SIGHUP)
            time.sleep(0.03)
        load.wait(0.5)
    traced.wait_running()
    assert traced.agent.pid == pid
    assert not load.failures
    assert not load.untraced()
    # on connections that the new program was there for; see the next test
    fresh = [a for a in load.answers if a.at > unsampled and a.path.startswith("/new/")]
    assert fresh and not any(_is_sampled(a) for a in fresh)
    assert any(_is_sampled(a) for a in load.answers)
    assert _cgroup_links(traced) == links


def _is_sampled(answer: Answer) -> bool:
    return bool(int(answer.traceparents[0][-2:], 16) & 1)


# Calls the service when a line comes, over one connection, and prints the traceparent it got.
_CALLER = """
import http.client, json, sys
connection = http.client.HTTPConnection("127.0.0.1", int(sys.argv[1]))
for line in sys.stdin:
    connection.request("GET", line.strip())
    headers = json.loads(connection.getresponse().read())["headers"]
    print(*headers.get("traceparent", ["-"]), flush=True)
"""


def test_a_kept_connection_follows_a_new_sampler(traced: Operated) -> None:
    chain = start_chain(traced)
    command = [sys.executable, "-c", _CALLER, str(chain.back)]
    caller = traced.spawn("caller", command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert caller.stdin is not None and caller.stdout is not None
    flags = []
    for sampler in ("always_on", "always_off"):
        traced.configure(sampling={"sampler": sampler})
        traced.reload()
        caller.stdin.write(b"/kept\n")
        caller.stdin.flush()
        flags.append(int(caller.stdout.readline().strip()[-2:], 16) & 1)
    caller.stdin.close()
    assert flags == [1, 0]


def test_a_release_that_cannot_be_executed_is_not_reloaded() -> None:
    with Operated(start=False) as host:
        host.launcher = host.directory / "missing" / "throughline"
        host.start_agent()
        chain = start_chain(host)
        assert host.agent is not None
        with Load(chain) as load:
            host.agent.send_signal(signal.SIGHUP)
            host.wait_log(f"not reloaded: {host.launcher} cannot be executed")
            load.wait(0.3)
        assert not load.failures and not load.untraced()
        assert len(host.wait_spans(3 * len(load.answers))) == 3 * len(load.answers)
        assert host.stop_agent() == 0


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


# Reads a URL with a pause after each 64 KiB; prints the number of bytes and their SHA-256.
_READER = """
import hashlib, sys, time, urllib.request
found, size = hashlib.sha256(), 0
with urllib.request.urlopen(sys.argv[1]) as answer:
    while data := answer.read(65536):
        found.update(data)
        size += len(data)
        time.sleep(float(sys.argv[2]))
print(size, found.hexdigest())
"""


def _read_slowly(traced: Operated, size: int, pause: float) -> tuple[Any, str]:
    """Starts nginx with a file, and a traced reader. Returns the reader and its expected output."""
    static = start_nginx(traced, "static", onward=1)
    data = os.urandom(1 << 20) * (size >> 20)
    (traced.directory / "static" / "files" / "big").write_bytes(data)
    url = f"http://127.0.0.1:{static}/files/big"
    command = [sys.executable, "-c", _READER, url, str(pause)]
    reader = traced.spawn("reader", command, stdout=subprocess.PIPE)
    return reader, f"{size} {hashlib.sha256(data).hexdigest()}\n"


def test_large_responses_in_flight_lose_no_byte(traced: Operated) -> None:
    reader, expected = _read_slowly(traced, 32 << 20, 0.004)
    time.sleep(0.7)
    assert reader.poll() is None, "the response is in flight"
    assert traced.stop_agent() == 0
    assert not traced.pins()
    assert reader.communicate()[0].decode() == expected


def test_a_reader_slower_than_the_stop_keeps_its_bytes(traced: Operated) -> None:
    reader, expected = _read_slowly(traced, 6 << 20, 0.08)
    time.sleep(1.0)
    assert traced.agent is not None
    ids = kernel_objects.held_by(traced.agent.pid)
    assert traced.stop_agent() == 0
    assert reader.poll() is None, "the response is in flight"
    assert not traced.pins()
    assert reader.communicate()[0].decode() == expected
    assert traced.command("detach").returncode == 0
    assert not traced.pins()
    assert not kernel_objects.left(ids)
