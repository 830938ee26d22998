"""Full maps and disks, a Collector away or slow: no request fails, every loss is counted."""

from __future__ import annotations

import re
import signal
import socket
import struct
import subprocess
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from tests.fixtures.load import Chain, Load, start_chain, start_nginx
from tests.fixtures.operated import Operated
from tests.fixtures.ports import free_port
from tests.fixtures.receiver import Receiver
from tests.fixtures.waiting import until
from throughline.bpf import abi, counters, maps
from throughline.features.programs import Programs, Settings
from throughline.host import facts

COUNT = 23


def _wrk(port: int, seconds: int) -> int:
    """Sends requests to nginx, all of which must succeed. Returns how many."""
    url = f"http://127.0.0.1:{port}/static"
    run = subprocess.run(
        ["wrk", "-t1", "-c16", f"-d{seconds}s", url], capture_output=True, text=True, check=True
    )
    assert "Non-2xx" not in run.stdout and "Socket errors" not in run.stdout, run.stdout
    match = re.search(r"(\d+) requests in", run.stdout)
    assert match is not None, run.stdout
    return int(match[1])


def test_a_full_ring_buffer_drops_spans_and_no_request(traced: Operated) -> None:
    port = start_nginx(traced, "front", onward=1)
    assert traced.agent is not None
    traced.agent.send_signal(signal.SIGSTOP)
    requests = _wrk(port, 4)
    time.sleep(2)
    assert traced.command("status").returncode == 3, "a status older than 5 seconds is none"
    traced.agent.send_signal(signal.SIGCONT)
    counters = traced.counters()
    # wrk ends before it has read the answers to its last requests
    assert requests <= counters["requests_server"] <= requests + 16
    dropped = counters["spans_dropped_ring_full"]
    assert dropped > 0, f"{requests} requests did not fill the ring buffer"
    assert counters["spans_sent"] + dropped == counters["requests_server"]
    before = len(traced.receiver.spans)
    for _ in range(COUNT):
        subprocess.run(
            ["curl", "-sSf", f"http://127.0.0.1:{port}/static?after"],
            check=True,
            stdout=subprocess.DEVNULL,
        )
    found = traced.wait_spans(COUNT, seconds=30, where=lambda span: "after" in span.path)
    assert len(found) == COUNT and before <= len(traced.receiver.spans)
    sent = traced.wait_counter("spans_sent", counters["spans_sent"] + COUNT)
    status = traced.status()
    assert status is not None
    lost = sum(status["export"]["dropped"].values())
    traced.receiver.wait(lambda spans: len(spans) + lost >= sent, seconds=30)
    assert len(traced.receiver.spans) + lost == sent, "every span arrived or was counted"


def _counts(programs: Programs) -> dict[str, int]:
    size = 8 * maps.possible_cpus()
    found = {}
    for index, name in enumerate(counters.COUNTERS):
        values = maps.lookup(programs.map_fd("tl_counters"), struct.pack("<I", index), size)
        total = sum(value for (value,) in struct.iter_unpack("<Q", values or b""))
        if total:
            found[name] = total
    return found


def test_full_maps_are_counted_and_traffic_goes_on() -> None:
    with Operated(start=False) as host:
        cgroup2 = facts.gather().cgroup2
        assert cgroup2 is not None
        with Programs(
            bpffs=host.bpffs,
            cgroup2=cgroup2,
            roots=[host.name],
            settings=Settings(abi.Sampler.ALWAYS_ON, 1.0, True, True),
            map_sizes={"tl_requests": 2, "tl_tracestates": 1, "tl_durations": 1, "tl_socks": 2},
        ) as programs:
            programs.attach_observe()
            programs.attach_headers()
            chain = start_chain(host)
            with Load(
                chain, threads=8, headers={"tracestate": "a=b", "traceparent": PARENT}
            ) as load:
                load.wait(1.5)
            with host.inside("holder"), ExitStack() as stack:
                for _ in range(4):
                    stack.enter_context(socket.create_connection(("127.0.0.1", chain.port)))
            counts = _counts(programs)
            # an agent of another build finds maps that it cannot use
            programs.close()
        assert not load.failures
        for name in ("full_requests", "full_tracestates", "full_durations", "enrol_failed"):
            assert counts.get(name, 0) > 0, counts
        run = host.command("run")
        assert run.returncode == 3
        assert "pins of another build" in run.stderr and "throughline detach" in run.stderr
        assert host.command("detach").returncode == 0
        assert host.pins() == []


PARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


# -- the Collector -------------------------------------------------------------------------------


def _point_to(port: int) -> dict[str, Any]:
    return {
        "otlp": {"endpoint": f"http://127.0.0.1:{port}", "timeout": 1},
        "metrics": {"enabled": False},
    }


def _export(traced: Operated, what: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """The export part of the status, once `what` is true of it."""
    return until(traced.export, enough=lambda found: found and what(found), otherwise=traced.log)


def _send(traced: Operated, chain: Chain) -> int:
    """Sends some requests. Returns how many spans they make."""
    with Load(chain, threads=2, pause=0.01) as load:
        load.wait(0.5)
    assert not load.failures
    return 3 * len(load.answers)


def _arrive(receiver: Receiver, count: int, *, seconds: float = 40.0) -> None:
    receiver.wait(lambda spans: len(spans) >= count, seconds=seconds)
    time.sleep(0.5)
    ids = [span.span_id for span in receiver.spans]
    assert len(ids) == len(set(ids)) == count


def test_a_collector_that_is_away_gets_everything_after_a_restart(traced: Operated) -> None:
    port = free_port()
    traced.configure(export=_point_to(port))
    traced.reload()
    chain = start_chain(traced)
    sent = _send(traced, chain)
    assert traced.stop_agent() == 0
    traced.start_agent()
    sent += _send(traced, chain)
    found = _export(traced, lambda said: said["state"] == "down" and said["spool_batches"] > 0)
    assert "refused" in found["last_error"]
    status = traced.status()
    assert status is not None and status["healthy"], "the Collector is not the host's health"
    with Receiver(socket.create_server(("127.0.0.1", port))) as receiver:
        _arrive(receiver, sent)
        assert traced.wait_export("spool_batches", 0)["dropped_spans"] == 0


def test_a_collector_that_answers_503_then_400_then_takes_them(traced: Operated) -> None:
    chain = start_chain(traced)
    traced.receiver.refuse_with = 503
    sent = _send(traced, chain)
    _export(traced, lambda said: "503" in said["last_error"])
    traced.receiver.refuse_with = 0
    _arrive(traced.receiver, sent)
    traced.receiver.refuse_with = 400
    refused = _send(traced, chain)
    found = traced.wait_export("dropped_spans", refused)
    assert found["dropped"] == {"refused": refused}
    assert "400" in found["last_error"]
    traced.receiver.refuse_with = 0
    sent += _send(traced, chain)
    _arrive(traced.receiver, sent)


def test_a_collector_that_hangs_holds_nothing_up(traced: Operated) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        traced.configure(export=_point_to(port))
        traced.reload()
        chain = start_chain(traced)
        sent = _send(traced, chain)
        _export(traced, lambda said: said["state"] == "down")
        stopping = time.monotonic()
        assert traced.stop_agent() == 0
        assert time.monotonic() - stopping < 8
    with Receiver(socket.create_server(("127.0.0.1", port))) as receiver:
        traced.start_agent()
        _arrive(receiver, sent)


def test_a_full_disk_keeps_spans_in_memory(traced: Operated) -> None:
    assert traced.stop_agent() == 0
    spool = traced.directory / "spool"
    spool.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8k,nr_inodes=8", "tl", spool], check=True)
    try:
        port = free_port()
        traced.configure(export=_point_to(port))
        traced.start_agent()
        chain = start_chain(traced)
        sent = _send(traced, chain) + _send(traced, chain)
        traced.wait_log(f"spool {spool}: No space left on device")
        found = _export(traced, lambda said: said["queued_spans"] > 0)
        assert found["dropped_spans"] == 0
        assert traced.command("status").returncode == 0
        with Receiver(socket.create_server(("127.0.0.1", port))) as receiver:
            _arrive(receiver, sent)
        assert traced.stop_agent() == 0
    finally:
        subprocess.run(["umount", spool], check=True)


def test_a_full_runtime_directory_does_not_end_the_agent(traced: Operated) -> None:
    """status.json cannot be written: the agent goes on, and the next status says it."""
    assert traced.stop_agent() == 0
    full = traced.directory / "runtime"
    full.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tl", full], check=True)
    try:
        traced.runtime = full
        traced.start_agent()
        filler = full / "filler"
        with filler.open("wb", buffering=0) as file:
            try:
                while file.write(b"x" * 4096):
                    pass
            except OSError:
                pass
        traced.wait_log("status cannot be written: .*status.json: No space left on device")
        assert "Traceback" not in traced.log(), "the words are enough"
        chain = start_chain(traced)
        with Load(chain) as load:
            load.wait(0.5)
        assert not load.failures and not load.untraced()
        assert len(traced.wait_spans(3 * len(load.answers))) == 3 * len(load.answers)
        filler.unlink()
        assert traced.wait_counter("step_failed_status", 1) >= 1
        assert traced.stop_agent() == 0
    finally:
        subprocess.run(["umount", full], check=True)


def test_a_systemd_that_does_not_listen_does_not_end_the_agent(traced: Operated) -> None:
    """sd_notify(3) to a socket that is gone. tests/unit/test_steps.py has the other steps."""
    assert traced.stop_agent() == 0
    gone = str(traced.directory / "gone")
    traced.start_agent(prefix=["env", f"NOTIFY_SOCKET={gone}"])
    assert traced.wait_counter("step_failed_notify", 2) >= 2, "each group, and READY=1"
    assert traced.log().count("notify failed") == 1
    assert traced.stop_agent() == 0
