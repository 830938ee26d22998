"""Go processes that start, end, execute others and are replaced while the agent looks at them."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.fixtures.certificate import make_certificate
from tests.fixtures.go.build import RACE, STRIPPED, build
from tests.fixtures.go.hops import CONCURRENT, Hops
from tests.fixtures.go.judge import Found, id_of
from tests.fixtures.ports import free_port, wait_port
from tests.fixtures.spans import Span
from tests.fixtures.traced import Traced
from tests.fixtures.waiting import until
from throughline.elf.sections import named
from throughline.probes import arch

pytestmark = pytest.mark.timeout(300)

OLD, NEW = "1.19", "1.27"  # their layouts differ
SHORT_LIVED = 1000  # of each of two programs
FIRST = 50_000  # of their ids, which no load has: their spans come late
DAMAGED, CUT = 18, 6
LOOKED_INTO_SECONDS = 10.0  # of so many
UNDER_LOAD = 2000
# a process that maps files as programs are mapped, and stays
MAPS = """
import mmap, signal, sys
kept = []
for name in sys.argv[1:]:
    with open(name, "rb") as file:
        kept.append(mmap.mmap(file.fileno(), 4096, prot=mmap.PROT_READ | mmap.PROT_EXEC))
signal.pause()
"""


@pytest.fixture
def traced() -> Iterator[Traced]:
    with Traced(quick=False) as found:  # what happens within a second is what some are about
        yield found
        assert "Traceback" not in found.log()


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
    """Goroutines of the new program have the numbers of the old one's goroutines."""
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
    until(lambda: executes(web, new), seconds=30)
    wait_port(port)
    url = f"http://127.0.0.1:{port}"
    assert ask(url, "context/answer", requests=640, first=2000)["ok"] == 640

    def calls(first: int, last: int) -> list[Any]:
        return [
            span
            for span in traced.receiver.spans
            if (span.service, span.kind) == ("web", "CLIENT") and first <= id_of(span) < last
        ]

    until(lambda: len(calls(0, 2640)) == 4 * CONCURRENT + 2 * 640, seconds=30)
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


def quiet(*command: str | Path) -> subprocess.Popen[bytes]:
    """Starts a program without its output."""
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def start(traced: Traced, service: str, *command: str | Path) -> subprocess.Popen[bytes]:
    """Starts a program at once, in a cgroup that the agent knows already."""
    procs = traced.cgroup / service / "cgroup.procs"
    return quiet("sh", "-c", f'echo $$ > {procs} && exec "$@"', "sh", *command)


def end(*processes: subprocess.Popen[bytes]) -> None:
    for process in processes:
        process.kill()
    for process in processes:
        process.wait()


def altered(process: subprocess.Popen[bytes], program: Path) -> int:
    """How many bytes of a process's code differ from its program: breakpoints of probes."""
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
    """Programs no two of which are the same file or have the same content."""
    directory.mkdir()
    content = program.read_bytes()
    made = [directory / f"{program.name}-{number}" for number in range(count)]
    for number, copy in enumerate(made):
        copy.write_bytes(content + number.to_bytes(8, "little"))
        copy.chmod(0o755)
    return made


def resident(pid: int) -> float:
    """Megabytes of memory that a process has."""
    found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found is not None
    return int(found[1]) / 1024


def serving(run: Callable[..., subprocess.Popen[bytes]], programs: Sequence[Path]) -> list[Path]:
    """The services that answer, after they have run long enough to be looked into."""
    ports = [free_port() for _ in programs]
    processes = [
        run(program, f"-listen=127.0.0.1:{port}")
        for program, port in zip(programs, ports, strict=True)
    ]
    time.sleep(LOOKED_INTO_SECONDS)
    found = []
    for program, port, process in zip(programs, ports, processes, strict=True):
        with contextlib.suppress(subprocess.CalledProcessError):
            ask(f"http://127.0.0.1:{port}", "answer", requests=64, first=0)
            if process.poll() is None:
                found.append(program)
    end(*processes)
    return found


def links_to(program: Path) -> list[Any]:
    """The links of uprobes to a program, of any agent."""
    command = ["bpftool", "--json", "link", "list"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return [link for link in json.loads(done.stdout) if link.get("path") == str(program)]


def assert_parents(spans: Sequence[Span], names: Sequence[str]) -> None:
    """No call of these services has another request for a parent."""
    requests = {span.span_id: span for span in spans if span.kind == "SERVER"}
    for span in spans:
        parent = requests.get(span.parent_span_id)
        if span.kind == "CLIENT" and span.service in names and parent is not None:
            assert id_of(parent) == id_of(span)


def assert_right(found: Found) -> None:
    assert (found.result["ok"], found.result["failed"]) == (found.requests, 0), found.result
    assert len(found.spans) == found.expected
    assert (found.wrong, set(found.calls)) == (0, {"right"})


def test_processes_that_end_while_they_are_looked_into(traced: Traced) -> None:
    """Nothing of them is kept, and later processes are followed."""
    hops = Hops(traced, "http/1.1", version=OLD, flags=STRIPPED)
    program = build("processes/server")
    before = len(opened(traced))
    for round_ in range(3):
        programs = copies(program, traced.directory / f"round-{round_}", 12)
        running = [start(traced, "front", copy, "-listen=127.0.0.1:0") for copy in programs]
        time.sleep(1.3)
        end(*running)
        shutil.rmtree(programs[0].parent)
    until(lambda: not [name for name in opened(traced) if "/round-" in name], seconds=30)
    until(lambda: len(opened(traced)) <= before + 2, seconds=30)
    late = Hops(traced, "http/1.1", flags=STRIPPED, names=("late-front", "late-back"))
    for services in (hops, late):
        assert_right(services.load("context/answer", requests=640))


def test_a_program_that_is_replaced_while_it_runs(traced: Traced) -> None:
    """A rename replaces it, as in the upgrade of a package."""
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
    until(lambda: f"{program} (deleted)" not in opened(traced), seconds=30)
    assert_right(new.load("context/answer", requests=640))


def test_a_program_that_is_written_over(traced: Traced) -> None:
    """The file is written in place, between two of its processes."""
    program = traced.directory / "program"
    shutil.copy(build("chain/server", version=OLD), program)
    old = Hops(traced, "https/1.1", version=OLD, program=program)
    assert_right(old.load("context/answer", requests=640))
    with pytest.raises(OSError, match="Text file busy"):
        program.open("r+b")
    end(*old.processes.values())
    shutil.copy(build("chain/server", version=NEW), program)
    at_once = []  # within a second, in which the agent does not look
    for _ in range(10):
        at_once.append(start(traced, "back", program, "-listen=127.0.0.1:0"))
        time.sleep(0.1)
    assert traced.wait_counter("tls_written", 1) == 1
    new = Hops(traced, "https/1.1", version=NEW, program=program)
    assert_right(new.load("context/answer", requests=640))
    assert all(altered(process, program) for process in at_once), "they are not probed"
    traced.stop_agent()
    assert [altered(process, program) for process in at_once] == [0] * len(at_once), traced.log()
    end(*at_once)


def test_a_service_that_starts_children(traced: Traced) -> None:
    """Children: the same program, another Go program, one that calls, another language."""
    program = build("processes/server", version="1.22", flags=STRIPPED)
    target = free_port()
    traced.spawn("target", [str(build("chain/server")), f"-listen=127.0.0.1:{target}"])
    wait_port(target)
    children = [
        f"{program} -end",
        f"{build('processes/hello')}",
        f"{build('processes/call')} -url=http://127.0.0.1:{target}/answer/0",
        "/bin/true",
    ]
    hops = Hops(
        *(traced, "processes http/1.1"),
        version="1.22",
        flags=STRIPPED,
        names=("front", "back"),
        options=[f"-child={child}" for child in children],
    )
    hops.learn("context/answer")
    assert_right(hops.load("context/answer", requests=400))
    calls = [
        span
        for span in traced.receiver.spans
        if span.kind == "CLIENT" and span.attributes["server.port"] == target
    ]
    assert len(calls) == 2 * (CONCURRENT + 400) / len(children)
    assert {span.parent_span_id for span in calls} == {""}


def test_thousands_of_short_lived_processes(traced: Traced) -> None:
    """Beside a service under load."""
    hello, call = build("processes/hello"), build("processes/call", version="1.22", flags=STRIPPED)
    target = free_port()
    traced.spawn("target", [str(build("chain/server")), f"-listen=127.0.0.1:{target}"])
    hops = Hops(traced, "https/1.1", version="1.22", flags=STRIPPED, ids=100_000)
    assert traced.agent is not None

    def run(first: int, count: int) -> None:
        each = f"{hello} >&2 && {call} -url=http://127.0.0.1:{target}/answer/$1"
        with start(
            *(traced, "front", "sh", "-c"),
            f"seq {first} {first + count - 1} | xargs -P 4 -n 1 sh -c '{each}' sh",
        ) as processes:
            assert processes.wait(240) == 0, "one has failed"

    run(FIRST, 100)
    time.sleep(2.0)
    before = resident(traced.agent.pid), len(opened(traced))
    with hops.sending("context/answer", requests=8 * SHORT_LIVED // 10, concurrent=4) as sent:
        run(FIRST + 100, SHORT_LIVED)
    assert sent["failed"] == 0, sent
    assert_right(hops.load("context/answer", requests=640))
    after = resident(traced.agent.pid), len(opened(traced))
    print(f"\n{before} MB and descriptors before, {after} after; {traced.counters()}")
    assert after[0] < before[0] + 16
    assert after[1] <= before[1] + 32  # programs that were not probed before, not processes
    assert not {name for name in traced.counters() if name.startswith(("full_", "go_too_many"))}
    everyone = list(range(FIRST, FIRST + 100 + SHORT_LIVED))
    until(
        lambda: sum(id_of(span) >= FIRST for span in traced.receiver.spans) >= 2 * len(everyone),
        seconds=30,
    )
    spans = traced.receiver.spans
    assert_parents(spans, ("front", "middle", "back"))
    calls = {
        span.span_id: span
        for span in spans
        if span.kind == "CLIENT" and span.attributes["server.port"] == target
    }
    assert len(calls) == len(everyone)
    assert {call.parent_span_id for call in calls.values()} == {""}
    served = [span for span in spans if span.service == "target"]
    assert sorted(map(id_of, served)) == everyone
    for span in served:
        assert id_of(calls[span.parent_span_id]) == id_of(span)


def damaged(program: Path, directory: Path, count: int) -> list[Path]:
    """Programs with some bytes of the function table changed, which the kernel executes."""
    content = program.read_bytes()
    fd = os.open(program, os.O_RDONLY)
    elf = arch.open_elf(fd)
    assert elf is not None
    table = named(elf)[".gopclntab"]
    os.close(fd)
    generator = random.Random(0)
    made = copies(program, directory, count)
    for number, copy in enumerate(made):
        changed = bytearray(content)
        # in the first programs the header is damaged, in others names, in others anything
        last = (64, table.size // 8, table.size)[number % 3]
        for _ in range(1 << number % 8):
            changed[table.offset + generator.randrange(last)] ^= 1 << generator.randrange(8)
        copy.write_bytes(changed)
    return made


def test_damaged_programs(traced: Traced) -> None:
    """The agent goes on, counts those that it does not understand, and harms none."""
    (traced.cgroup / "damaged").mkdir()
    program = build("chain/server", version="1.22")
    hops = Hops(traced, "http/1.1", version="1.22", flags=STRIPPED)
    directory = traced.directory / "programs"
    programs = damaged(program, directory, DAMAGED)
    content = program.read_bytes()
    cut = [directory / f"cut-{number}" for number in range(CUT)]
    for number, path in enumerate(cut):
        path.write_bytes(content[: len(content) * (number + 1) // (CUT + 1)])
        path.chmod(0o755)
    alone = serving(quiet, programs)
    assert 0 < len(alone) < len(programs)
    assert serving(lambda *command: start(traced, "damaged", *command), programs) == alone
    end(*(start(traced, "damaged", path) for path in cut))
    mapped = start(traced, "damaged", sys.executable, "-c", MAPS, *programs, *cut)
    assert traced.wait_counter("tls_malformed", CUT, seconds=30) == CUT
    assert_right(hops.load("context/answer", requests=640))
    assert mapped.poll() is None
    end(mapped)
    counters = traced.counters()
    print(f"\n{len(alone)} of {len(programs)} serve; {counters}")
    assert counters.get("go_unsupported", 0) + counters.get("go_malformed", 0) >= DAMAGED // 6


@pytest.mark.parametrize(
    ("number", "version", "flags"),
    [
        (signal.SIGTERM, "1.22", STRIPPED),
        (signal.SIGKILL, "1.22", STRIPPED),
        (signal.SIGKILL, NEW, RACE),
    ],
    ids=["stopped", "killed", "killed-race"],
)
def test_the_agent_ends_under_load(
    traced: Traced, number: signal.Signals, version: str, flags: tuple[str, ...]
) -> None:
    """Services that collect garbage all the time go on, and the next agent follows them."""
    program = traced.directory / "program"
    shutil.copy(build("processes/server", version=version, flags=flags), program)
    hops = Hops(
        *(traced, "processes https/1.1"),
        version=version,
        program=program,
        options=["-garbage"],
        environment={"GOGC": "1"},
    )
    assert_right(hops.load("fan-2-1/answer", requests=320))
    services = list(hops.processes.values())
    with hops.sending("fan-2-1/answer", requests=UNDER_LOAD, seconds=180) as sent:
        time.sleep(1.0)
        assert all(altered(process, program) for process in services)
        traced.stop_agent(number)
        assert [altered(process, program) for process in services] == [0] * len(services)
        assert links_to(program) == []
        time.sleep(1.0)
        traced.start_agent()
        traced.wait_followed(program)
    assert (sent["ok"], sent["failed"]) == (UNDER_LOAD, 0), sent
    assert_right(hops.load("fan-2-1/answer", requests=320))
    assert_parents(traced.receiver.spans, hops.names)
