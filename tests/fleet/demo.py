"""`make demo`: three hosts, eight unmodified services, one playbook run, every request one trace.

From the second host to the third a request goes by HTTPS, and from nginx to PHP-FPM by a Unix
socket. Some kernels do not show what goes by a Unix socket: there a request is two traces.

Exit code 0 only if all is right; the hosts are gone afterwards in any case.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests.fixtures.receiver import Receiver
from tests.fixtures.spans import Span, by_trace
from tests.fleet import joined, network, playbook, releases, shop, tree, waterfall
from tests.fleet.hosts import Fleet, fleet
from tests.fleet.joined import Request
from tests.fleet.playbook import REPOSITORY, PlaybookError
from tests.fleet.shop import RequestError

PAGE = REPOSITORY / "build" / "demo" / "trace.html"
RECEIVER_PORT = 4318
SPAN_SECONDS = 20.0
SHOWN_PROBLEMS = 30
COUNTS = {1: "one trace", 2: "one of two traces"}
BEGIN = time.monotonic()


class DemoError(Exception):
    """The demo cannot continue. The message says what is missing."""


FAILURES = (
    *(DemoError, PlaybookError, RequestError),
    *(OSError, RuntimeError, ValueError, subprocess.SubprocessError),
)


def say(line: str) -> None:
    """Progress, with the seconds since the start."""
    print(f"[{time.monotonic() - BEGIN:6.1f} s] {line}", flush=True)


@contextmanager
def step(title: str) -> Iterator[None]:
    """Shows the name of a step, and its time at the end."""
    begin = time.monotonic()
    say(f"{title} …")
    yield
    say(f"{title}: {time.monotonic() - begin:.1f} s")


def bundle() -> Path:
    """The newest bundle in dist/. Raises DemoError when there is none."""
    try:
        return releases.newest()
    except FileNotFoundError as error:
        raise DemoError(str(error)) from error


def counters(running: Fleet) -> Iterator[str]:
    """The groups, and the counters that are not zero, of each host's agent."""
    for host in running.hosts:
        answer = running.run(host, "/opt/throughline/current/bin/throughline status", check=False)
        yield f"--- {host.name}: throughline status (exit code {answer.returncode})"
        yield (answer.stdout + answer.stderr).rstrip()


def judge(
    running: Fleet,
    requests: list[Request],
    received: list[Span],
    hops: tuple[joined.Hops, ...],
) -> bool:
    """Prints the verdict and one tree, writes the page, and returns whether every hop is joined."""
    problems = joined.check(requests, received, traces=hops)
    traces = by_trace(received)
    waterfall.write(PAGE, received, title="throughline demo: one request through eight services")
    shown = next((span for span in received if joined.cart(span) == requests[0].cart), None)
    if shown is not None:
        print(f"\ntrace {shown.trace_id}", *tree.lines(traces[shown.trace_id]), sep="\n")
        print(flush=True)
    say(f"waterfall: {PAGE.relative_to(REPOSITORY)}")
    if not problems:
        say(
            f"every hop of all {len(requests)} requests is in {COUNTS[len(hops)]} with the right "
            f"parent ({len(received)} spans, {len(traces)} traces)"
        )
        return True
    print(*problems[:SHOWN_PROBLEMS], sep="\n")
    if len(problems) > SHOWN_PROBLEMS:
        print(f"… and {len(problems) - SHOWN_PROBLEMS} more")
    print(*counters(running), sep="\n")
    say(f"NOT joined: {len(problems)} problems in {len(requests)} requests, see above")
    return False


def demo(name: str, release: Path) -> bool:
    """Runs the whole demo on a fleet called `name` with the agent bundle `release`."""
    say(f"agent bundle: {release.name}")
    with ExitStack() as stack:
        with step("Three Debian 12 hosts with systemd boot"):
            running = stack.enter_context(fleet(name, count=3, say=say))
        receiver = stack.enter_context(Receiver(network.listen(name, port=RECEIVER_PORT)))
        say(f"OTLP receiver listens on {receiver.endpoint}")
        with step(
            "HAProxy, nginx, FastAPI, Python, Node.js, PHP-FPM, Ruby are installed (unmodified)"
        ):
            playbook.run(running, playbook.SERVICES)
        with step("ansible-playbook playbooks/site.yml rolls throughline out"):
            otlp = {"endpoint": receiver.endpoint, "protocol": "http/protobuf"}
            playbook.run(
                running,
                playbook.SITE,
                throughline_bundle=str(release),
                throughline_config={"export": {"otlp": otlp}, **shop.CONFIG},
                **shop.VARIABLES,
            )
        with step("shop-stock (Node.js) is restarted, to load the preload"):
            shop.restart_stock(running)
        hops, reason = shop.traces(running)
        if reason:
            say(f"nginx to PHP-FPM by a Unix socket has no spans, and ends a trace: {reason}")
        else:
            say("nginx to PHP-FPM by a Unix socket: this kernel shows it")
        with step(f"{shop.REQUESTS} requests, {shop.AT_ONCE} at a time, are answered"):
            requests = shop.send(running)
        with step("Spans arrive"):
            receiver.wait(
                lambda spans: joined.complete(requests, spans, traces=hops), seconds=SPAN_SECONDS
            )
        return judge(running, requests, receiver.spans, hops)


def main() -> int:
    """0 when every hop is joined, 1 when not, 130 after Ctrl-C."""
    parser = argparse.ArgumentParser(prog="python -m tests.fleet.demo", description=__doc__)
    parser.add_argument("--name", default="demo", help="name of the fleet (%(default)s)")
    parser.add_argument("--bundle", type=Path, help="agent bundle (the newest in dist/)")
    arguments = parser.parse_args()
    try:
        release = (arguments.bundle or bundle()).resolve(strict=True)
        return 0 if demo(arguments.name, release) else 1
    except KeyboardInterrupt:
        say("interrupted; the hosts are gone")
        return 130
    except FAILURES as error:
        say(f"demo failed: {error}")
        return 1


if __name__ == "__main__":
    sys.exit(main())
