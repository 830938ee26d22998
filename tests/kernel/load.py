"""A chain (nginx as a proxy -> a Python service) and a load on it that judges every answer.

The service answers with the headers that it got, so the load sees for each request whether a
`traceparent` arrived at the far side.
"""

from __future__ import annotations

import http.client
import json
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from tests.kernel.traced import Traced, free_port, wait_port
from throughline.bpf import fionread

SERVICE = Path(__file__).with_name("services") / "threaded.py"

_NGINX = """\
daemon off;
worker_processes 2;
error_log {directory}/nginx.log;
pid {directory}/nginx.pid;
events {{ worker_connections 512; }}
http {{
    access_log off;
    client_body_temp_path {directory}/t1;
    proxy_temp_path {directory}/t2;
    fastcgi_temp_path {directory}/t3;
    uwsgi_temp_path {directory}/t4;
    scgi_temp_path {directory}/t5;
    upstream kept {{ server 127.0.0.1:{onward}; keepalive 16; }}
    server {{
        listen 127.0.0.1:{port};
        listen [::1]:{port};
        location = /static {{ return 200 "static\\n"; }}
        location /files/ {{ alias {directory}/files/; sendfile on; }}
        location /keep/ {{
            proxy_pass http://kept;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
        }}
        location / {{ proxy_pass http://127.0.0.1:{onward}; proxy_buffering on; }}
    }}
}}
"""


@dataclass(frozen=True, slots=True)
class Chain:
    """nginx listens on `port` of 127.0.0.1 and ::1 and calls the service on `back`."""

    port: int
    back: int


def start_nginx(
    traced: Traced,
    service: str,
    *,
    onward: int,
    port: int | None = None,
    prefix: Sequence[str] = (),
) -> int:
    """Starts nginx in a cgroup of its own; returns its port.

    With `prefix`, a command that runs it somewhere else, nobody waits until it listens.
    """
    port = port or free_port()
    directory = traced.directory / service
    (directory / "files").mkdir(parents=True, exist_ok=True)
    for path in (directory, traced.directory):  # its workers are another user
        path.chmod(0o755)
    file = directory / "nginx.conf"
    file.write_text(_NGINX.format(directory=directory, port=port, onward=onward))
    log = str(directory / "nginx.log")
    traced.spawn(service, [*prefix, "nginx", "-e", log, "-c", str(file)])
    if not prefix:
        wait_port(port)
    return port


def start_chain(traced: Traced) -> Chain:
    """Starts the two services `front` and `back`."""
    back = free_port()
    for service in ("front", "back"):  # the agent learns of both at once
        (traced.cgroup / service).mkdir(exist_ok=True)
    traced.spawn("back", [sys.executable, str(SERVICE), str(back)])
    port = start_nginx(traced, "front", onward=back)
    wait_port(back)
    return Chain(port, back)


@dataclass(frozen=True, slots=True)
class Answer:
    at: float  # time.monotonic() when the request was sent
    path: str  # another one for each request
    traceparents: tuple[str, ...]  # at the far side


class Load:
    """Requests from a few threads until the block ends: half on kept, half on new connections.

    `failures` must stay empty: whatever is no whole, right answer stands there.
    """

    def __init__(
        self,
        chain: Chain,
        *,
        threads: int = 4,
        pause: float = 0.004,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self._chain = chain
        self._headers = dict(headers or {})
        self._pause = pause
        self._end = threading.Event()
        self._threads = [
            threading.Thread(target=self._run, args=(number,), daemon=True)
            for number in range(threads)
        ]
        self.answers: list[Answer] = []
        self.failures: list[str] = []

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._end.set()
        for thread in self._threads:
            thread.join(30)

    def wait(self, seconds: float) -> float:
        """Lets the load run; returns the time at the end."""
        time.sleep(seconds)
        return time.monotonic()

    def untraced(self, *, since: float = 0.0) -> list[Answer]:
        """Answers to requests that reached the far side without exactly one traceparent.

        Where FIONREAD is broken, nginx's kept connections carry one in their first request only.
        """
        broken = fionread.is_broken()
        return [
            a
            for a in self.answers
            if a.at >= since
            and len(a.traceparents) != 1
            and not (broken and a.path.startswith("/keep/") and not a.traceparents)
        ]

    def paths(self, *, since: float = 0.0) -> set[str]:
        return {a.path for a in self.answers if a.at >= since}

    def trace_ids(self) -> list[str]:
        return [a.traceparents[0].split("-")[1] for a in self.answers if a.traceparents]

    def _run(self, number: int) -> None:
        keep = number % 2 == 0
        connection = self._connect()
        count = 0
        while not self._end.is_set():
            count += 1
            # both kinds of connection to nginx meet both kinds from nginx to the service
            path = f"/{'keep' if count % 2 else 'new'}/{number}/{count}"
            at = time.monotonic()
            try:
                connection.request("GET", path, headers=self._headers)
                response = connection.getresponse()
                body = response.read()
                if response.status != 200:
                    raise ValueError(f"{response.status} {body[:200]!r}")
                answer = json.loads(body)
                if answer["path"] != path:
                    raise ValueError(f"answer to {answer['path']}")
            except Exception as error:  # whatever went wrong, the request has failed
                self.failures.append(f"{path}: {type(error).__name__}: {error}")
                connection.close()
                connection = self._connect()
                continue
            self.answers.append(Answer(at, path, tuple(answer["headers"].get("traceparent", ()))))
            if not keep:
                connection.close()
                connection = self._connect()
            time.sleep(self._pause)
        connection.close()

    def _connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self._chain.port, timeout=20)
