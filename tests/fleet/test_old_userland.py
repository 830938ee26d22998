"""Debian 11's userland: Python 3.9, glibc 2.31, systemd 247. The kernel is this machine's."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.fixtures.receiver import Receiver
from tests.fixtures.waiting import until
from tests.fleet import hosts, network, playbook, releases, root, shop, twohops
from tests.fleet.hosts import Fleet

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="fleet hosts need root"),
    pytest.mark.skipif(
        not sorted(releases.DIST.glob(releases.PATTERN)),
        reason="no agent bundle in dist/: run make bundle",
    ),
]

NAME = "old"
COUNT = 7


@pytest.fixture
def fleet() -> Iterator[Fleet]:
    with hosts.fleet(NAME, count=1, recipe=root.DEBIAN_11) as running:
        yield running


def test_the_agent_brings_its_own_interpreter(fleet: Fleet, bundle: object) -> None:
    """The host's Python is too old for the agent, and its user may not even execute it."""
    (host,) = fleet.hosts
    versions = fleet.run(host, "python3 --version; getconf GNU_LIBC_VERSION; systemctl --version")
    assert "Python 3.9" in versions.stdout and "glibc 2.31" in versions.stdout
    fleet.run(host, 'chmod 0700 "$(readlink -f /usr/bin/python3)"')
    fleet.run(host, twohops.START)
    with Receiver(network.listen(NAME, port=4318)) as receiver:
        playbook.run(
            fleet,
            playbook.SITE,
            quiet=True,
            throughline_bundle=str(bundle),
            throughline_config={"export": {"otlp": {"endpoint": receiver.endpoint}}},
        )
        used = fleet.run(host, "cat /proc/$(systemctl show -p MainPID --value throughline)/maps")
        libraries = {line.split()[-1] for line in used.stdout.splitlines() if ".so" in line}
        assert libraries
        assert [path for path in libraries if not path.startswith("/opt/throughline/")] == []
        answers = [
            fleet.run(host, "curl -sS --fail http://127.0.0.1:8080/").stdout for _ in range(COUNT)
        ]
        spans = until(
            lambda: receiver.spans, enough=lambda found: len(found) >= 3 * COUNT, seconds=15
        )
    calls = {span.trace_id: span for span in spans if span.kind == "CLIENT"}
    assert len(calls) == COUNT
    for answer in answers:
        _, trace_id, parent, _ = answer.strip().split("-")
        call = calls[trace_id]
        assert call.span_id == parent
        assert call.parent_span_id in {span.span_id for span in spans if span.kind == "SERVER"}
    playbook.run(fleet, playbook.UNINSTALL, quiet=True)
    left = fleet.run(host, f"ls -d /opt/throughline /etc/throughline {shop.AGENT}", check=False)
    assert left.stdout == ""
