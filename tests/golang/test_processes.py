"""Go processes that come, end, become others and are replaced, while the agent looks at them."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.golang.build import RACE, STRIPPED, build
from tests.golang.hops import CONCURRENT, Hops
from tests.golang.judge import id_of
from tests.kernel.secure import make_certificate
from tests.kernel.traced import Traced, free_port, wait_port

pytestmark = pytest.mark.timeout(300)

OLD, NEW = "1.19", "1.27"  # they keep fields elsewhere


@pytest.fixture
def traced() -> Iterator[Traced]:
    with Traced() as found:
        yield found
        assert "Traceback" not in found.log()


def wait(what: Callable[[], Any], *, seconds: float = 30.0) -> Any:
    """Waits until something is true, and returns it."""
    deadline = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < deadline, "it has not come true"
        time.sleep(0.05)
    return found


def executes(process: subprocess.Popen[bytes], program: Path) -> bool:
    return os.readlink(f"/proc/{process.pid}/exe") == str(program)  # noqa: PTH115


def ask(url: str, plan: str, *, requests: int, first: int, ca: Path | None = None) -> Any:
    """Sends requests, and waits for their end."""
    command = [str(build("chain/client")), f"-url={url}", f"-path=/{plan}", f"-first={first}"]
    command += [f"-requests={requests}", f"-concurrent={CONCURRENT}"]
    command += [f"-ca={ca}"] if ca else []
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)
    return json.loads(done.stdout)


def test_a_process_that_executes_another_program(traced: Traced) -> None:
    """Goroutines of the new program have the numbers that those of the old one had."""
    certificate = make_certificate(traced.directory)
    old, new = (build("processes/server", version=v, flags=STRIPPED) for v in (OLD, NEW))
    port, back = free_port(), free_port()
    traced.spawn("back", [str(new), f"-listen=127.0.0.1:{back}"])
    wait_port(back)
    onward = f"-upstream=http://127.0.0.1:{back}"
    web = traced.spawn(
        "web",
        [
            *(str(old), f"-listen=127.0.0.1:{port}", f"-certificate={certificate}", onward),
            f"-become={new} -listen=127.0.0.1:{port} {onward} -calls={4 * CONCURRENT}",
        ],
    )
    wait_port(port)
    for program in (old, new):
        traced.wait_followed(program)
    url = f"https://127.0.0.1:{port}"
    hang = [str(build("chain/client")), f"-url={url}", "-path=/hang", f"-requests={CONCURRENT}"]
    hang += [f"-concurrent={CONCURRENT}", f"-ca={certificate}"]
    with subprocess.Popen(hang, stdout=subprocess.DEVNULL):
        time.sleep(2.0)
        assert ask(url, "context/answer", requests=640, first=1000, ca=certificate)["ok"] == 640
        web.send_signal(signal.SIGUSR1)
    wait(lambda: executes(web, new))
    wait_port(port)
    url = f"http://127.0.0.1:{port}"
    assert ask(url, "context/answer", requests=640, first=2000)["ok"] == 640

    def calls(first: int, last: int) -> list[Any]:
        return [
            span
            for span in traced.receiver.spans
            if (span.service, span.kind) == ("web", "CLIENT") and first <= id_of(span) < last
        ]

    for first, last in ((0, 4 * CONCURRENT), (1000, 1640), (2000, 2640)):
        wait(lambda first=first, last=last: len(calls(first, last)) == last - first)
    requests = {span.span_id: span for span in traced.receiver.spans if span.kind == "SERVER"}
    assert {span.parent_span_id for span in calls(0, 4 * CONCURRENT)} == {""}
    for span in calls(1000, 2640):
        assert id_of(requests[span.parent_span_id]) == id_of(span)
