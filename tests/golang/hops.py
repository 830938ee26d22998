"""Chains of Go services front → middle → back under the real agent, a load on them, and the judge.

    with Traced() as traced:
        hops = Hops(traced, "http/1.1", version="1.22", flags=STRIPPED)
        found = hops.load("fan-3-2/context/answer")
        assert found.wrong == 0

A plan (services/chain/plan.go) says what the handler at each hop does. Each request has an id of
its own at the end of its path (gRPC: of its method's name), the same at each hop, so that a span
says to which request it belongs, whatever its trace and its parent are.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.fleet.spans import Span
from tests.golang import tested, toolchains
from tests.golang.build import build
from tests.golang.judge import Answer, Found, id_of, judge
from tests.kernel.secure import make_certificate
from tests.kernel.traced import Traced, free_port, wait_port

NAMES = ("front", "middle", "back")
CONCURRENT = 64
LEARN_SECONDS = 2.5
REQUESTS = 1280
QUEUE = 6000  # spans, fewer than wait in the agent's memory before it drops any
SETTLE_SECONDS = 0.5
QUIET_SECONDS = 15.0  # after which no more spans are expected


@dataclass(frozen=True, slots=True)
class Protocol:
    """What one module of services speaks."""

    module: str
    client: str  # the module of the load
    tls: bool = False
    http2: bool = False

    @property
    def grpc(self) -> bool:
        return self.module == "grpc"

    @property
    def in_goroutines(self) -> bool:
        """Is each call made by a goroutine of its own?"""
        return self.http2 or self.module == "http2"


PROTOCOLS = {
    "http/1.1": Protocol("chain", "chain"),
    "https/1.1": Protocol("chain", "chain", tls=True),
    "https/2": Protocol("chain", "chain", tls=True, http2=True),
    "x/net http/2": Protocol("http2", "http2"),
    "x/net https/2": Protocol("http2", "http2", tls=True),
    "gin http/1.1": Protocol("gin", "chain"),
    "gin https/2": Protocol("gin", "chain", tls=True, http2=True),
    "processes http/1.1": Protocol("processes", "chain"),
    "processes https/1.1": Protocol("processes", "chain", tls=True),
    "grpc": Protocol("grpc", "grpc"),
    "grpc tls": Protocol("grpc", "grpc", tls=True),
}


class Hops:
    """The services, each in a cgroup of its own, all of one build; they end with `traced`."""

    def __init__(
        self,
        traced: Traced,
        protocol: str,
        *,
        version: str = toolchains.NEWEST,
        flags: Sequence[str] = (),
        modules: str = "",
        names: Sequence[str] = NAMES,
        ids: int = 10_000,
        options: Sequence[str] = (),
        program: Path | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """`program` is what is executed, if not what is built."""
        self.protocol = PROTOCOLS[protocol]
        self.names = names
        self._traced = traced
        self._ids = ids
        self._next_id = 0
        self._client = build(f"{self.protocol.client}/client")
        server = program or build(
            f"{self.protocol.module}/server", version=version, flags=flags, modules=modules
        )
        if self.protocol.tls:
            directory = traced.directory / "-".join(names)
            directory.mkdir(exist_ok=True)
            self._certificate = make_certificate(directory)
        for name in names:  # the agent learns of all at once
            (traced.cgroup / name).mkdir(exist_ok=True)
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self._port = 0
        for name in reversed(names):
            port = free_port()
            with self._log(name).open("wb") as log:
                self.processes[name] = traced.spawn(
                    name,
                    [str(server), *self._flags(port, self._port), *options],
                    stderr=log,
                    env={**os.environ, **(environment or {})},
                )
            wait_port(port)
            self._port = port
        if traced.agent is not None:
            if program is None:
                tested.note(protocol, server, flags)
            traced.wait_followed(server, version=toolchains.release(version))

    def learn(self, *plans: str) -> None:
        """Lets the agent see with which functions goroutines of these plans begin."""
        for plan in plans:
            self.load(plan, requests=CONCURRENT)
        time.sleep(LEARN_SECONDS)

    def forget(self) -> None:
        """All spans so far, so that a long run needs no more memory; ids begin anew."""
        self._settle()
        self._traced.receiver.forget_spans()
        self._next_id = 0

    def load(
        self,
        plan: str,
        *,
        requests: int = REQUESTS,
        concurrent: int = CONCURRENT,
        at_once: int | None = None,
        method: str = "unary",
        own: bool = False,
        spans: bool = True,
        more: int = 0,
        seconds: float = 120.0,
    ) -> Found:
        """Sends requests with ids that no load had before, and judges what came of them.

        With `own`, each has a traceparent. After `at_once` requests, as many as the agent's queue
        holds the spans of, the load waits for these, unless `spans` says that there will be none.
        There are `more` spans than the plan says where calls are repeated. `seconds` is for all of
        that.
        """
        deadline = time.monotonic() + seconds
        each = spans_of(plan) if spans else 0
        step = at_once or max(QUEUE // spans_of(plan), 1)
        ids = range(self._next_id, self._next_id + requests)
        arrived = _Arrived(self._settle(), self.names, ids)
        results, answers = [], []
        for sent in range(0, requests, step):
            count = min(step, requests - sent)
            result, these = self._send(plan, count, concurrent, method, own, deadline)
            results.append(result)
            answers += these
            arrived.enough = (sent + count) * each
            self._wait(arrived, deadline)
        self._settle()
        arrived(self._traced.receiver.spans)
        found = judge(
            {
                "ok": sum(result["ok"] for result in results),
                "failed": sum(result["failed"] for result in results),
                "p99_ms": max(result["p99_ms"] for result in results),
                "failures": [said for result in results for said in result["failures"]],
            },
            spans=arrived.spans,
            expected=requests * each + more,
            answers=answers,
            names=self.names,
        )
        print(f"\n{self.protocol.module} {plan}: {found}")
        return found

    def _wait(self, arrived: _Arrived, deadline: float) -> None:
        """Waits until enough spans have arrived, or no more do."""
        receiver, seen = self._traced.receiver, -1
        while len(receiver.spans) > seen and time.monotonic() < deadline:
            seen = len(receiver.spans)
            if receiver.wait(arrived, seconds=QUIET_SECONDS):
                return

    def _settle(self) -> int:
        """Waits until no more spans come, and says how many have."""
        count = -1
        while count != (count := len(self._traced.receiver.spans)):
            time.sleep(SETTLE_SECONDS)
        return count

    def _send(
        self, plan: str, count: int, concurrent: int, method: str, own: bool, deadline: float
    ) -> tuple[dict[str, Any], list[Answer]]:
        """One run of the client."""
        record = self._traced.directory / "answers"
        command = [
            *self._command(plan, count, concurrent, method),
            *(f"-record={record}", *(["-own"] if own else [])),
        ]
        remaining = deadline - time.monotonic()
        done = subprocess.run(command, capture_output=True, text=True, timeout=remaining)
        assert not done.returncode, done.stderr
        self.assert_sane()
        lines = record.read_text().splitlines()
        return json.loads(done.stdout), [json.loads(line) for line in lines]

    def _command(self, plan: str, count: int, concurrent: int, method: str) -> list[str]:
        first, self._next_id = self._next_id, self._next_id + count
        assert self._next_id <= self._ids, "more requests than there are ids"
        return [
            *(str(self._client), *self._target(method)),
            *(f"-path=/{plan}", f"-requests={count}", f"-concurrent={concurrent}"),
            f"-first={first}",
        ]

    @contextmanager
    def sending(
        self,
        plan: str,
        *,
        requests: int,
        concurrent: int = CONCURRENT,
        seconds: float = 120.0,
    ) -> Iterator[dict[str, Any]]:
        """Sends requests while the block runs, and to their end; nobody waits for their spans.

        What came of them is in the dictionary afterwards.
        """
        result: dict[str, Any] = {}
        command = self._command(plan, requests, concurrent, "unary")
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as client:
            try:
                yield result
                result |= json.loads(client.communicate(timeout=seconds)[0])
            finally:
                client.kill()
        self.assert_sane()

    def assert_sane(self) -> None:
        """No service has died, panicked, or found a data race."""
        for name, process in self.processes.items():
            said = self._log(name).read_text(errors="replace")
            assert process.poll() is None, f"{name} has ended:\n{said}"
            assert not re.search(r"panic|fatal error|DATA RACE", said), f"{name}:\n{said[:4000]}"

    def _log(self, name: str) -> Path:
        return self._traced.directory / f"{name}.stderr"

    def _flags(self, port: int, onward: int) -> list[str]:
        flags = [f"-listen=127.0.0.1:{port}"]
        if self.protocol.tls:
            flags += [f"-certificate={self._certificate}", f"-ca={self._certificate}"]
        if self.protocol.grpc:
            return [*flags, f"-numbered={self._ids}"] + (
                [f"-upstream=127.0.0.1:{onward}"] if onward else []
            )
        if self.protocol.http2:
            flags += ["-http2", "-upstream-http2"]
        return [*flags, f"-upstream={self._url(onward)}"]

    def _target(self, method: str) -> list[str]:
        trust = [f"-ca={self._certificate}"] if self.protocol.tls else []
        if self.protocol.grpc:
            return [f"-target=127.0.0.1:{self._port}", f"-method={method}", "-numbered", *trust]
        trust += ["-http2"] if self.protocol.http2 else []
        return [f"-url={self._url(self._port)}", *trust]

    def _url(self, port: int) -> str:
        return f"{'https' if self.protocol.tls else 'http'}://127.0.0.1:{port}"


class _Arrived:
    """The spans of a load, which has these `ids`, of those that come behind `seen` others."""

    def __init__(self, seen: int, names: Sequence[str], ids: range) -> None:
        self._seen, self._names, self._ids = seen, names, ids
        self.spans: list[Span] = []
        self.enough = 0

    def __call__(self, received: list[Span]) -> bool:
        """Have enough arrived? `received` are all so far."""
        fresh, self._seen = received[self._seen :], len(received)
        self.spans += [s for s in fresh if s.service in self._names and id_of(s) in self._ids]
        return len(self.spans) >= self.enough


def spans_of(plan: str) -> int:
    """How many spans a request with this plan gives: a server span, and two for each call."""
    kind, _, rest = plan.partition("/")
    if not rest:
        return 1
    words = kind.removeprefix("bare-").split("-")
    calls = int(words[1]) ** int(words[2]) if words[0] == "fan" else 1
    return 1 + calls * (1 + spans_of(rest))
