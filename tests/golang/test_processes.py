"""Go processes that come, end, become others and are replaced, while the agent looks at them."""

from __future__ import annotations

import contextlib
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

from tests.golang.build import STRIPPED, build
from tests.golang.hops import CONCURRENT, Hops
from tests.golang.judge import Found, id_of
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


def opened(traced: Traced) -> list[str]:
    """The files that the agent has open."""
    assert traced.agent is not None
    found = []
    for link in Path(f"/proc/{traced.agent.pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            found.append(os.readlink(link))  # noqa: PTH115
    return found


def start(traced: Traced, service: str, *command: str | Path) -> subprocess.Popen[bytes]:
    """Starts a program at once, in a cgroup that the agent knows already."""
    procs = traced.cgroup / service / "cgroup.procs"
    return subprocess.Popen(
        ["sh", "-c", f'echo $$ > {procs} && exec "$@"', "sh", *map(str, command)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def end(*processes: subprocess.Popen[bytes]) -> None:
    for process in processes:
        process.kill()
    for process in processes:
        process.wait()


def altered(process: subprocess.Popen[bytes], program: Path) -> int:
    """How many bytes of a process's code are not those of its program: breakpoints of probes."""
    found = 0
    content = program.read_bytes()
    maps = Path(f"/proc/{process.pid}/maps").read_text().splitlines()
    with Path(f"/proc/{process.pid}/mem").open("rb", buffering=0) as memory:
        for fields in (line.split() for line in maps if line.endswith(str(program))):
            start, stop = (int(address, 16) for address in fields[0].split("-"))
            memory.seek(start)
            offset = int(fields[2], 16)
            if "x" in fields[1]:
                there = content[offset : offset + stop - start]
                loaded = memory.read(stop - start)[: len(there)]
                found += sum(a != b for a, b in zip(loaded, there, strict=True))
    return found


def copies(program: Path, directory: Path, count: int) -> list[Path]:
    """Programs of which no two are the same file, nor have the same content."""
    directory.mkdir()
    content = program.read_bytes()
    made = [directory / f"{program.name}-{number}" for number in range(count)]
    for number, copy in enumerate(made):
        copy.write_bytes(content + number.to_bytes(8, "little"))
        copy.chmod(0o755)
    return made


def assert_right(found: Found) -> None:
    assert (found.result["ok"], found.result["failed"]) == (found.requests, 0), found.result
    assert len(found.spans) == found.expected
    assert (found.wrong, set(found.calls)) == (0, {"right"})


def test_processes_that_end_while_they_are_looked_into(traced: Traced) -> None:
    """Nothing is kept of them, and who comes after them is followed."""
    hops = Hops(traced, "http/1.1", version=OLD, flags=STRIPPED)
    program = build("processes/server")
    before = len(opened(traced))
    for round_ in range(3):
        programs = copies(program, traced.directory / f"round-{round_}", 12)
        running = [start(traced, "front", copy, "-listen=127.0.0.1:0") for copy in programs]
        time.sleep(1.3)
        end(*running)
        shutil.rmtree(programs[0].parent)
    wait(lambda: not [name for name in opened(traced) if "/round-" in name])
    wait(lambda: len(opened(traced)) <= before + 2)
    late = Hops(traced, "http/1.1", flags=STRIPPED, names=("late-front", "late-back"))
    for services in (hops, late):
        assert_right(services.load("context/answer", requests=640))


def test_a_program_that_is_replaced_while_it_runs(traced: Traced) -> None:
    """By renaming another over it, as the upgrade of a package does."""
    program = traced.directory / "program"
    shutil.copy(build("chain/server", version=OLD), program)
    old = Hops(traced, "https/1.1", version=OLD, program=program, names=("old-front", "old-back"))
    assert_right(old.load("context/answer", requests=640))
    shutil.copy(build("chain/server", version=NEW), traced.directory / "fresh")
    (traced.directory / "fresh").rename(program)
    assert_right(old.load("context/answer", requests=640))
    new = Hops(traced, "https/1.1", version=NEW, program=program, names=("new-front", "new-back"))
    for services in (old, new, old):
        assert_right(services.load("context/answer", requests=640))
    end(*old.processes.values())
    wait(lambda: f"{program} (deleted)" not in opened(traced))
    assert_right(new.load("context/answer", requests=640))


def test_a_program_that_is_written_over(traced: Traced) -> None:
    """In place, between two of its processes."""
    program = traced.directory / "program"
    shutil.copy(build("chain/server", version=OLD), program)
    old = Hops(traced, "https/1.1", version=OLD, program=program)
    assert_right(old.load("context/answer", requests=640))
    with pytest.raises(OSError, match="Text file busy"):
        program.open("r+b")
    end(*old.processes.values())
    shutil.copy(build("chain/server", version=NEW), program)
    at_once = start(traced, "back", program, "-listen=127.0.0.1:0")
    assert traced.wait_counter("tls_written", 1) == 1
    new = Hops(traced, "https/1.1", version=NEW, program=program)
    assert_right(new.load("context/answer", requests=640))
    assert altered(at_once, program), "nothing is probed"
    traced.stop_agent()
    assert altered(at_once, program) == 0
    end(at_once)
