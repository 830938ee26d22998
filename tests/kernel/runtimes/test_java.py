"""Parents of calls that Java makes: by virtual thread, 32 requests at a time."""

from __future__ import annotations

import asyncio
import http.client
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.fixtures import java
from tests.fixtures.ports import free_port, wait_port
from tests.fixtures.traced import Traced

RELEASES = pytest.mark.parametrize("major", [21, 25])
COLLECTORS = {
    "g1": ["-XX:+UseG1GC"],
    "parallel": ["-XX:+UseParallelGC"],
    "serial": ["-XX:+UseSerialGC"],
    "shenandoah": ["-XX:+UseShenandoahGC"],
    "z": ["-XX:+UseZGC"],
    "generational z": ["-XX:+UseZGC", "-XX:+ZGenerational"],
    "wide pointers": ["-XX:+UseG1GC", "-XX:-UseCompressedOops"],
}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return java.classes(tmp_path_factory.mktemp("classes"))


@pytest.fixture(scope="module")
def traced() -> Iterator[Traced]:
    with Traced() as found:
        yield found


@pytest.mark.parametrize("way", ["now", "later", "twice", "socket"])
@RELEASES
def test_virtual_threads(traced: Traced, built: Path, major: int, way: str) -> None:
    found = java.run(traced, java.need(major), built, way, "virtual")
    assert found.keys() == {"right"}


@RELEASES
def test_a_poller_beside(traced: Traced, built: Path, major: int) -> None:
    """Its calls are of no request."""
    found = java.run(
        *(traced, java.need(major), built, "later", "virtual"),
        service=f"poller-{major}",
        environment={"POLL": "1"},
    )
    assert found.keys() == {"right", "of others, none"}


@RELEASES
def test_calls_after_the_answer(traced: Traced, built: Path, major: int) -> None:
    """Their request has ended. The server of Java 21 may send the end of an answer later."""
    before = traced.counters().get("root_parent_ended", 0)
    found = java.run(traced, java.need(major), built, "after", "virtual")
    assert found["wrong"] == 0 and found["none"] > 0
    assert not (major > 21 and found["right"])
    assert traced.counters()["root_parent_ended"] - before == found["none"]


@pytest.mark.parametrize("way", ["spawned", "handed", "async"])
@RELEASES
def test_work_of_other_threads_is_not_told(
    traced: Traced, built: Path, major: int, way: str
) -> None:
    """Each call without a parent is counted by its reason."""
    before = traced.counters().get("root_java_other_thread", 0)
    found = java.run(traced, java.need(major), built, way, "virtual", requests=397)
    assert found["wrong"] == 0
    assert traced.counters()["root_java_other_thread"] - before == found["none"] > 0


@RELEASES
def test_the_http_client_is_never_wrong(traced: Traced, built: Path, major: int) -> None:
    """It writes in threads of its own, or in the one that calls."""
    found = java.run(traced, java.need(major), built, "client", "virtual", requests=397)
    assert found["wrong"] == 0


@pytest.mark.parametrize("collector", COLLECTORS)
@RELEASES
def test_collectors_that_move_objects(
    traced: Traced, built: Path, major: int, collector: str
) -> None:
    """While threads of the service make garbage: the objects of virtual threads move."""
    if major > 23 and collector == "generational z":
        pytest.skip("the only ZGC since Java 24: see z")
    found = java.run(
        *(traced, java.need(major), built, "later", "virtual"),
        service=f"{collector.replace(' ', '-')}-{major}",
        flags=["-Xmx512m", *COLLECTORS[collector]],
        environment={"CHURN": "2"},
        requests=499,
    )
    assert found.keys() == {"right"}


def test_java_17_has_platform_threads_only(traced: Traced, built: Path) -> None:
    """It is followed, and its threads are those of any program."""
    found = java.run(traced, java.need(17), built, "client", "pool", requests=97)
    assert found["wrong"] == 0
    assert traced.counters()["root_java_other_thread"] >= found["none"]


@pytest.mark.parametrize("way", ["now", "later", "twice"])
@pytest.mark.parametrize("major", [17, 25])
def test_a_pool_earns_trust(traced: Traced, built: Path, major: int, way: str) -> None:
    before = traced.counters().get("parent_java", 0)
    found = java.run(traced, java.need(major), built, way, "pool")
    assert found["wrong"] == 0
    assert traced.counters()["parent_java"] - before >= 0.9 * found["right"]


@pytest.mark.parametrize("major", [17, 25])
def test_a_pool_that_also_runs_what_is_handed_over(traced: Traced, built: Path, major: int) -> None:
    """Its threads prove nothing. What they seem to prove before that is seen, trust.h judges."""
    before = traced.counters()
    found = java.run(traced, java.need(major), built, "handed", "pool")
    after = traced.counters()
    assert after["java_contradicted"] - before.get("java_contradicted", 0) == 1
    assert after.get("parent_java") == before.get("parent_java"), (
        "no wrong one is said to be proven"
    )
    assert found["none"] > found["wrong"]


class _Gate(BaseHTTPRequestHandler):
    """The next service. It answers GET /now/held once `opened` is set."""

    opened = threading.Event()
    came = threading.Event()

    def do_GET(self) -> None:
        if self.path == "/now/held":
            self.came.set()
            assert self.opened.wait(60)
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"ok")

    def log_message(self, *_: object) -> None:
        pass


def test_a_request_that_is_open_when_the_jvm_becomes_known(built: Path) -> None:
    """That its read was not seen is no contradiction when it is answered.

    The programs of a killed agent go on. So they know of the request, and the next agent tells the
    JVM while it is served.
    """
    jvm = java.need(17)
    port = free_port()
    with Traced() as traced, ThreadingHTTPServer(("127.0.0.1", 0), _Gate) as gate:
        threading.Thread(target=gate.serve_forever, daemon=True).start()
        traced.spawn("web", ["true"])  # from now on its cgroup is traced
        traced.stop_agent(signal.SIGKILL)
        words = jvm.words(built, ["-Xmx256m", "-XX:+UseSerialGC"])
        traced.spawn("web", [*words, str(port), str(gate.server_port), "pool"])
        wait_port(port, seconds=60)
        held = http.client.HTTPConnection("127.0.0.1", port, timeout=90)
        held.request("GET", "/now/held")
        assert _Gate.came.wait(30)
        traced.start_agent()
        java.wait_followed(traced, jvm)
        asyncio.run(java.load(port, "now", requests=23, concurrent=1))
        _Gate.opened.set()
        assert held.getresponse().status == 200
        asyncio.run(java.load(port, "now", requests=97, concurrent=8))
        counters = traced.counters()
        assert counters.get("java_contradicted", 0) == 0
        assert counters["parent_java"] >= 97
        gate.shutdown()


def test_two_releases_in_one_cgroup(traced: Traced, built: Path) -> None:
    jvms = [java.need(21), java.need(25)]
    results: list[object] = []

    def one(jvm: java.Jvm) -> None:
        way = {21: "later", 25: "twice"}[jvm.major]
        found = java.run(traced, jvm, built, way, "virtual", service="both", alone=False)
        results.append(found.keys())

    threads = [threading.Thread(target=one, args=(jvm,)) for jvm in jvms]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [{"right"}] * 2


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_the_agent_starts_again_meanwhile(built: Path, number: signal.Signals) -> None:
    """A killed agent's programs go on. What a new one finds is right from its first second on."""
    jvm = java.need(25)
    with Traced() as traced, java.service(traced, jvm, built, "web", "virtual") as port:
        java.wait_followed(traced, jvm)
        asyncio.run(java.load(port, "now", requests=97, concurrent=32))
        traced.wait_spans(97, where=lambda span: span.kind == "CLIENT")
        traced.stop_agent(number)
        time.sleep(0.5)
        if number is signal.SIGKILL:
            asyncio.run(java.load(port, "later", requests=197, concurrent=32))
        traced.start_agent()
        java.wait_followed(traced, jvm)
        asyncio.run(java.load(port, "twice", requests=97, concurrent=32))
        expected = 97 + 197 * (number is signal.SIGKILL) + 194
        traced.wait_spans(expected, where=lambda span: span.kind == "CLIENT")
        for way, calls in (("now", 97), ("twice", 194), ("later", expected - 291)):
            found = java.judge(traced.receiver.spans, "web", way, calls=calls, alone=False)
            assert found.keys() <= {"right"} and found["right"] == calls


def test_a_library_that_is_replaced_on_disk(built: Path, tmp_path: Path) -> None:
    """As by an upgrade: the process maps a file that has no name any more."""
    jvm = java.need(25)
    home = tmp_path / "jdk"
    shutil.copytree(jvm.command.parent.parent, home, symlinks=True, ignore=_large)
    copied = java.Jvm(home / "bin" / "java", jvm.release)
    library = home / "lib" / "server" / "libjvm.so"
    with Traced(start=False) as traced, java.service(traced, copied, built, "web", "virtual") as at:
        other = library.with_name("new")
        other.write_bytes(library.read_bytes() + b"\0")
        other.rename(library)
        traced.start_agent()
        java.wait_followed(traced, jvm)
        asyncio.run(java.load(at, "later", requests=97, concurrent=32))
        traced.wait_spans(97, where=lambda span: span.kind == "CLIENT")
        found = java.judge(traced.receiver.spans, "web", "later", calls=97)
        assert found.keys() == {"right"}


def _large(_directory: str, names: list[str]) -> set[str]:
    return {"src.zip", "jmods", "demo", "man"} & set(names)


def test_switched_off(built: Path) -> None:
    """Then the carriers of virtual threads prove nothing."""
    with Traced({"instrumentation": {"java": "off"}}) as traced:
        jvm = java.need(25)
        found = java.run(traced, jvm, built, "later", "virtual", requests=97, followed=False)
        assert found.keys() == {"none"}
        assert traced.counters()["root_virtual_thread"] > 0
        status = traced.status()
        assert status is not None
        assert status["groups"]["java"]["reason"] == "instrumentation.java is off"
        assert status["java"] is None
