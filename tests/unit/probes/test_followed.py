"""Providers that probe nothing: they only learn of the processes that map their files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from tests.unit.probes.host import LIBSSL, OTHER, Host
from throughline.probes.files import KEEP_UNUSED_SECONDS
from throughline.probes.provider import Answer, Found, Probed, Process
from throughline.probes.site import Site
from throughline.steps import Turns

WHOLE = (0x7F00, 0x1000)  # where host.py maps the first file of a process, and its place in there


class Follows:
    """A provider of the files with the content of OTHER."""

    name = "follows"

    def __init__(self) -> None:
        self.failures: Counter[str] = Counter()

    def find(self, file: int) -> Found | Answer:
        with open(f"/proc/self/fd/{file}", "rb") as stream:  # noqa: PTH123
            return Found() if stream.read() == OTHER else Answer.NOT_MINE

    def tick(self, _probed: Sequence[Probed]) -> Turns[None]:
        yield from ()

    def describe(self, _found: Probed) -> Mapping[str, str]:
        return {}

    def leaving(self, _sites: Sequence[Site]) -> None:
        pass

    def close(self) -> None:
        pass


def processes(host: Host) -> list[tuple[Process, ...]]:
    return [probed.processes for probed in host.files.probed("follows")]


def test_the_processes_of_a_file_without_sites(host: Host) -> None:
    host.files._providers = (host.provider, Follows())
    path = host.file("libjvm.so", OTHER)
    host.process(10, path, started=4711)
    host.process(11, host.file("libssl.so", LIBSSL), path)
    host.follow()
    (found,) = host.files.probed("follows")
    assert found.sites == ()
    assert set(found.processes) == {
        Process(10, 4711, *WHOLE),
        Process(11, 99, 0x7F01, 0x1000),
    }
    assert len(host.links) == 5, "those of the libssl"
    assert host.given_back == 1, "who writes to a file without probes does not wait"
    assert (host.files.failures, host.paths.count(str(path))) == ({}, 1)


def test_a_process_that_ends_and_its_number_given_again(host: Host) -> None:
    host.files._providers = (Follows(),)
    path = host.file("libjvm.so", OTHER)
    host.process(10, path)
    host.follow()
    host.end(10)
    host.follow()
    assert processes(host) == [()]
    host.process(10, path, started=100)
    host.follow()
    assert processes(host) == [(Process(10, 100, *WHOLE),)]


def test_a_process_that_executes_another_program(host: Host) -> None:
    host.files._providers = (Follows(),)
    host.process(10, host.file("libjvm.so", OTHER))
    host.follow()
    host.process(10, exe="/bin/other")
    host.follow()
    assert processes(host) == [()]


def test_a_file_that_nobody_maps_any_more_is_let_go(host: Host) -> None:
    host.files._providers = (Follows(),)
    host.process(10, host.file("libjvm.so", OTHER))
    host.follow()
    host.end(10)
    host.follow()
    host.follow(KEEP_UNUSED_SECONDS + 1)
    assert host.files.attached == ()
