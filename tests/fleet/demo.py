"""`make demo`: three hosts, four unmodified services, one playbook run, every request one trace.

Exit code 0 only if all is right; the hosts are gone afterwards in any case.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from tests.fleet import joined, network, tree, waterfall
from tests.fleet.hosts import Fleet, fleet
from tests.fleet.joined import Request
from tests.fleet.receiver import Receiver
from tests.fleet.spans import Span, by_trace

REPOSITORY = Path(__file__).resolve().parents[2]
PAGE = REPOSITORY / "build" / "demo" / "trace.html"
HERE = Path(__file__).parent
RECEIVER_PORT = 4318
REQUESTS = 23
SPAN_SECONDS = 20.0
SHOWN_PROBLEMS = 30
TRACEPARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
TRACESTATE = "demo=1"
BEGIN = time.monotonic()


class DemoError(Exception):
    """The demo cannot go on; the message says what is missing."""


def say(line: str) -> None:
    """Progress, with the seconds since the start."""
    print(f"[{time.monotonic() - BEGIN:6.1f} s] {line}", flush=True)


@contextmanager
def step(title: str) -> Iterator[None]:
    """Says what begins and how long it took."""
    begin = time.monotonic()
    say(f"{title} …")
    yield
    say(f"{title}: {time.monotonic() - begin:.1f} s")


def bundle() -> Path:
    """The newest bundle in dist/. Raises DemoError when there is none."""
    found = sorted(
        (REPOSITORY / "dist").glob("throughline-*-linux-*.tar.gz"),
        key=lambda file: file.stat().st_mtime,
    )
    if not found:
        raise DemoError("there is no agent bundle in dist/: run make bundle")
    return found[-1]


def playbook(running: Fleet, file: Path, **variables: object) -> None:
    """Runs ansible-playbook against the fleet. Raises DemoError when it fails."""
    program = shutil.which("ansible-playbook", path=str(Path(sys.executable).parent))
    program = program or shutil.which("ansible-playbook")
    if program is None:
        raise DemoError("ansible-playbook is not installed: run make setup")
    if not file.exists():
        raise DemoError(f"{file} does not exist")
    answer = subprocess.run(
        [program, "-i", running.inventory, file, "-e", json.dumps(variables)],
        cwd=REPOSITORY,
        stdin=subprocess.DEVNULL,
    )
    if answer.returncode:
        raise DemoError(f"{file.name} failed with exit code {answer.returncode}")


def curl(running: Fleet, carts: Sequence[str], *options: str) -> list[dict[str, Any]]:
    """Sends one request for each cart from the fleet's bridge and returns the answers' JSON.

    Raises DemoError when a request fails.
    """
    url = f"http://{running.hosts[0].address}/cart/{{{','.join(carts)}}}"
    with tempfile.TemporaryDirectory() as directory:
        answer = subprocess.run(
            [
                *(*running.inside, "curl", "-sS", "--fail", "--max-time", "10", *options),
                *("--output", f"{directory}/#1", url),
            ],
            capture_output=True,
            text=True,
        )
        if answer.returncode:
            raise DemoError(f"curl: {answer.stderr.strip() or f'exit code {answer.returncode}'}")
        return [json.loads((Path(directory) / cart).read_text()) for cart in carts]


def send(running: Fleet) -> list[Request]:
    """Sends the demo's requests: on one connection, all at once, and one with its own context."""
    half = REQUESTS // 2
    plain = [f"{number:03d}" for number in range(1, 2 * half + 1)]
    traced = f"{2 * half + 1:03d}"
    answers = curl(running, plain[:half])
    answers += curl(running, plain[half:], "--parallel", "--parallel-immediate")
    own = ("-H", f"traceparent: {TRACEPARENT}", "-H", f"tracestate: {TRACESTATE}")
    answers += curl(running, [traced], *own)
    return [
        Request(
            cart=order["cart"],
            traceparent=TRACEPARENT if order["cart"] == traced else "",
            tracestate=TRACESTATE if order["cart"] == traced else "",
            received=order["stock"]["prices"]["received"],
        )
        for order in answers
    ]


def counters(running: Fleet) -> Iterator[str]:
    """What each host's agent says about itself: groups and every counter that is not zero."""
    for host in running.hosts:
        answer = running.run(host, "/opt/throughline/current/bin/throughline status", check=False)
        yield f"--- {host.name}: throughline status (exit code {answer.returncode})"
        yield (answer.stdout + answer.stderr).rstrip()


def judge(running: Fleet, requests: list[Request], received: list[Span]) -> bool:
    """Prints the verdict and one tree, writes the page, and says whether all is right."""
    problems = joined.check(requests, received)
    traces = by_trace(received)
    waterfall.write(PAGE, received, title="throughline demo: one request through four services")
    shown = next((span for span in received if joined.cart(span) == requests[0].cart), None)
    if shown is not None:
        print(f"\ntrace {shown.trace_id}", *tree.lines(traces[shown.trace_id]), sep="\n")
        print(flush=True)
    say(f"waterfall: {PAGE.relative_to(REPOSITORY)}")
    if not problems:
        say(
            f"every hop of all {len(requests)} requests is in one trace with the right parent "
            f"({len(received)} spans, {len(traces)} traces)"
        )
        return True
    print(*problems[:SHOWN_PROBLEMS], sep="\n")
    if len(problems) > SHOWN_PROBLEMS:
        print(f"… and {len(problems) - SHOWN_PROBLEMS} more")
    print(*counters(running), sep="\n")
    say(f"NOT joined: {len(problems)} problems in {len(requests)} requests, see above")
    return False


def demo(name: str) -> bool:
    """Runs the whole demo on a fleet called `name`."""
    say(f"agent bundle: {bundle().relative_to(REPOSITORY)}")
    with ExitStack() as stack:
        with step("Three Debian 12 hosts with systemd boot"):
            running = stack.enter_context(fleet(name, count=3, say=say))
        receiver = stack.enter_context(Receiver(network.listen(name, port=RECEIVER_PORT)))
        say(f"OTLP receiver listens on {receiver.endpoint}")
        with step("nginx, Python, Node.js and Ruby services are installed (unmodified)"):
            playbook(running, HERE / "services.yml")
        with step("ansible-playbook playbooks/site.yml rolls throughline out"):
            otlp = {"endpoint": receiver.endpoint, "protocol": "http/protobuf"}
            config = {"export": {"otlp": otlp}}
            playbook(running, REPOSITORY / "playbooks" / "site.yml", throughline_config=config)
        with step(f"{REQUESTS} requests are answered"):
            requests = send(running)
        with step("Spans arrive"):
            receiver.wait(lambda spans: joined.complete(requests, spans), seconds=SPAN_SECONDS)
        return judge(running, requests, receiver.spans)


def main() -> int:
    """0 when every hop is joined, 1 when not, 130 after Ctrl-C."""
    parser = argparse.ArgumentParser(prog="python -m tests.fleet.demo", description=__doc__)
    parser.add_argument("--name", default="demo", help="name of the fleet (%(default)s)")
    try:
        return 0 if demo(parser.parse_args().name) else 1
    except KeyboardInterrupt:
        say("interrupted; the hosts are gone")
        return 130
    except (DemoError, OSError, RuntimeError, ValueError, subprocess.SubprocessError) as error:
        say(f"demo failed: {error}")
        return 1


if __name__ == "__main__":
    sys.exit(main())
