"""Which files are probed, and when they are let go."""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.fixtures import elffile
from tests.unit.probes.host import (
    LIBSSL,
    OTHER,
    Host,
    change,
    deleted,
    device_of,
)
from throughline.elf.elf import MalformedError
from throughline.host.lease import Lease
from throughline.probes import files as files_module
from throughline.probes import mappings
from throughline.probes.files import KEEP_UNUSED_SECONDS
from throughline.probes.provider import Answer, Found, Probed
from throughline.probes.site import Site
from throughline.steps import Turns


def test_a_library_is_found_by_what_it_defines(host: Host) -> None:
    path = host.file("strange-name.bin")
    host.process(10, path, host.file("libc.so", OTHER))
    host.follow()
    (found,) = host.files.attached
    assert (found.path, found.processes, found.refused) == (str(path), 1, "")
    assert [link.program for link in host.links] == [
        *("tl_ssl_has_read", "tl_ssl_has_sent"),
        *("tl_ssl_read_ex", "tl_ssl_write_ex", "tl_ssl_free"),
    ]
    shown = found.as_json("openssl")
    assert (shown["programs"][0], shown["single_stepped"]) == ("tl_ssl_read_ex", False)
    assert host.files.failures == {}


def test_a_single_stepped_one_is_told(host: Host) -> None:
    host.process(10, host.file("x", elffile.build({"SSL_read": elffile.SUB, "SSL_write": b"U"})))
    host.follow()
    (found,) = host.files.attached
    assert found.as_json("openssl")["single_stepped"] is True


def test_two_names_of_a_file_attach_once(host: Host) -> None:
    first = host.file("libssl.so")
    second = host.directory / "other.so"
    second.hardlink_to(first)
    host.process(10, first)
    host.process(11, second)
    host.follow()
    assert len(host.links) == 5
    assert [found.processes for found in host.files.attached] == [2]


def test_a_file_that_vanishes_meanwhile_is_read_when_it_is_there(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its process may end between any two steps: that says nothing about the file."""
    path = host.file("libssl.so")
    really = mappings.open_file

    def gone(path: str) -> int:
        raise FileNotFoundError(2, "No such file or directory")

    monkeypatch.setattr(mappings, "open_file", gone)
    host.process(10, path)
    host.follow()
    host.end(10)
    monkeypatch.setattr(mappings, "open_file", really)
    host.process(11, path)
    host.follow()
    assert host.paths == [str(path)]


def test_who_writes_waits_until_the_probes_are_gone(host: Host) -> None:
    path = host.file("libssl.so")
    host.process(10, path)
    host.follow()
    assert len(host.paths) == 1
    host.writer_waits = True
    host.process(10)
    host.follow()
    host.detached()
    assert (host.paths, host.files.failures) == ([], {"written": 1})


def test_a_file_whose_file_system_is_gone_is_let_go(host: Host) -> None:
    host.process(10, host.file("libssl.so"))
    host.follow()
    host.stale = OSError(errno.ESTALE, "Stale file handle")
    host.follow()
    host.detached()
    assert (host.paths, host.links) == ([], [])
    assert host.files.failures == {"file_unreadable": 1}
    host.stale = None
    host.follow()
    assert len(host.paths) == 1


def test_a_file_that_is_being_written_is_looked_at_later(host: Host) -> None:
    host.leases = "written"
    host.process(10, host.file("libssl.so"))
    host.follow()
    assert (host.paths, host.files.failures) == ([], {})
    host.leases = "granted"
    host.follow()
    assert len(host.paths) == 1


def test_a_file_that_others_may_write_to_unseen_is_counted(host: Host) -> None:
    """Without CAP_LEASE."""
    host.leases = "refused"
    host.process(10, host.file("libssl.so"))
    host.follow()
    assert len(host.paths) == 1
    assert host.files.failures == {"unguarded": 1}


def test_what_is_not_probed_is_not_held(host: Host) -> None:
    host.process(10, host.file("other.so", OTHER))
    host.follow()
    assert host.given_back == 1


def test_only_so_many_files_are_attached_to(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """A service may map as many copies as it likes: our descriptors are bounded."""
    monkeypatch.setattr(files_module, "_MAX_FILES", 3)
    paths = [host.file(f"{number}.so") for number in range(5)]
    host.process(10, *paths)
    host.follow()
    assert len(host.files.attached) == 3
    assert host.files.failures == {"too_many_files": 2}
    for path in paths[:3]:
        path.unlink()
    host.process(10)
    host.follow(30)
    host.detached()
    host.process(11, *paths[3:])
    host.follow()
    assert host.paths == [str(path) for path in paths[3:]]


def test_files_are_read_once(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    really = mappings.open_file

    def noted(path: str) -> int:
        opened.append(path)
        return really(path)

    monkeypatch.setattr(mappings, "open_file", noted)
    path, other, damaged = host.file("a"), host.file("b", OTHER), host.file("c", LIBSSL[:4000])
    for pid in range(10, 20):
        host.process(pid, path, other, damaged)
    for _ in range(40):
        host.follow()
    assert len(opened) == 3
    other.write_bytes(LIBSSL)  # now it is another file
    host.process(30, other)
    host.follow()
    assert len(opened) == 4
    assert len(host.paths) == 2
    assert host.files.failures == {"malformed": 1}


def test_unused_for_ten_minutes_is_let_go(host: Host) -> None:
    path = host.file("libssl.so")
    host.process(10, path)
    host.follow()
    host.end(10)
    host.follow()
    host.follow(KEEP_UNUSED_SECONDS - 1)
    assert host.paths == [str(path)]
    host.process(11, path)
    host.follow()
    host.end(11)
    host.follow()
    host.follow(KEEP_UNUSED_SECONDS - 1)
    assert host.paths == [str(path)]
    host.follow()
    assert host.paths == []
    host.detached()
    assert host.links == []
    host.process(12, path)
    host.follow()
    assert len(host.links) == 5


def test_another_mount_namespace_is_let_go_with_its_last_process(host: Host) -> None:
    host.file("container/usr/lib/libssl-of-a-container.so")
    name = "/usr/lib/libssl-of-a-container.so"
    host.process(10, name, root=host.directory / "container")
    host.follow()
    assert host.paths == [name]
    host.end(10)
    host.follow()
    assert host.paths == []


def test_a_removed_file_is_let_go_with_its_last_process(host: Host) -> None:
    path = host.file("libssl.so")
    host.process(10, path)
    host.follow()
    path.unlink()
    host.follow()
    assert len(host.paths) == 1
    host.end(10)
    host.follow()
    assert host.paths == []


@pytest.mark.parametrize("used", [True, False])
def test_a_file_that_is_written_over_is_let_go_at_once(host: Host, used: bool) -> None:
    path = host.file("node")
    host.process(10, path)
    host.follow()
    if not used:
        host.end(10)
        host.follow()
    path.write_bytes(elffile.build({"SSL_read": elffile.PUSH, "SSL_write": elffile.PUSH}))
    host.follow()
    assert host.paths == []
    assert host.files.failures == {"written": 1}
    host.detached()
    host.follow()
    # with its new content when somebody has it
    assert len(host.links) == (4 if used else 0)


def test_a_library_replaced_by_an_upgrade_stays_attached(host: Host) -> None:
    """The old processes map the deleted file, the new ones its successor."""
    path = host.file("libssl.so")
    host.process(10, path)
    host.follow()
    device = device_of(path)
    path.rename(host.directory / "kept")  # so that its inode number is not used again
    host.file("libssl.so")
    for pid in (10, 12):
        host.process(pid)
        maps = host.proc / str(pid) / "maps"
        maps.write_text(f"7f00-7f01 r-xp 00000000 {device}  {path} (deleted)\n")
    host.process(11, path)
    host.follow(30)
    assert sorted(found.processes for found in host.files.attached) == [1, 2]
    assert host.files.failures == {}


def test_a_library_deleted_before_we_came_is_counted(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    really = os.open

    def refuse(path: Any, *arguments: Any, **named: Any) -> int:
        if "map_files" in str(path):
            raise PermissionError(1, "Operation not permitted")
        return really(path, *arguments, **named)

    monkeypatch.setattr(os, "open", refuse)
    for path in (host.file("libssl.so"), host.file("libc.so", OTHER), Path("/none")):
        deleted(host, path)
        host.follow(30)
        assert host.files.failures == {"deleted": 1}
    assert host.paths == [str(host.directory / "libssl.so")]  # for those who start now


def test_a_deleted_library_is_probed_where_that_is_permitted(host: Host) -> None:
    path = host.file("libssl.so")
    deleted(host, path)
    kept = host.file("kept")
    (host.proc / "10" / "map_files").mkdir()
    (host.proc / "10" / "map_files" / "7f00-7f01").symlink_to(kept)
    host.follow()
    assert {link.file[1] for link in host.links} == {kept.stat().st_ino}


def test_hostile_files_do_not_end_it(host: Host) -> None:
    sizes = struct.pack("<H", 0xFFFF)
    host.process(10, host.file("a", LIBSSL[:56] + sizes + LIBSSL[58:]), host.file("b", LIBSSL[:70]))
    host.follow()
    assert host.files.failures == {"malformed": 2}


def test_a_fault_of_ours_does_not_end_it(host: Host) -> None:
    host.fault = struct.error("int too large to convert")
    host.process(10, host.file("a"))
    host.follow()
    assert (host.paths, host.files.failures) == ([], {"failed": 1})
    assert host.given_back == 1
    host.fault = None
    host.process(11, host.file("b"))
    host.follow()
    assert len(host.paths) == 1


def test_who_sets_the_time_back_is_seen(host: Host) -> None:
    """By ctime: the instructions under the probes are others now."""
    path = host.file("libssl.so")
    host.process(10, path)
    host.follow()
    assert len(host.paths) == 1
    change(path, b"\x7fELF" + bytes(len(LIBSSL) - 4))
    host.follow()
    host.detached()
    assert host.links == []
    assert host.files.failures["written"] == 1


def test_what_was_examined_is_examined_again_when_the_time_is_set_back(host: Host) -> None:
    path = host.file("a.so", OTHER.ljust(len(LIBSSL), b"\0"))
    host.process(10, path)
    host.follow()
    assert host.paths == []
    change(path, LIBSSL.ljust(path.stat().st_size, b"\0"))
    host.process(11, path)
    host.follow()
    assert len(host.paths) == 1


def test_another_mode_or_name_takes_no_probe_away(host: Host) -> None:
    path = host.file("libssl.so")
    host.process(10, path)
    host.follow()
    path.chmod(0o600)
    host.follow()
    path.rename(host.directory / "renamed.so")
    host.follow()
    (host.directory / "link").hardlink_to(host.directory / "renamed.so")
    host.follow()
    assert len(host.links) == 5
    assert host.files.failures == {}


def test_a_lease_that_the_kernel_took_is_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")

    monkeypatch.setattr(fcntl, "fcntl", refuse)
    Lease(-1).give_back()


class Slow:
    """A provider that answers LATER twice for each file, and then that there is nothing in it."""

    name = "slow"

    def __init__(self) -> None:
        self.failures: Counter[str] = Counter()
        self.asked = 0

    def find(self, _file: int) -> Found | Answer:
        self.asked += 1
        return Answer.NOT_MINE if self.asked % 3 == 0 else Answer.LATER

    def tick(self, _probed: Sequence[Probed]) -> Turns[None]:
        yield from ()

    def describe(self, _found: Probed) -> Mapping[str, str]:
        return {}

    def leaving(self, _sites: Sequence[Site]) -> None:
        pass

    def close(self) -> None:
        pass


class Keeper(Slow):
    """Finds itself in every file, and keeps something for each, as a provider with indices does."""

    name = "keeper"

    def __init__(self) -> None:
        super().__init__()
        self.found = self.kept = 0

    def find(self, _file: int) -> Found | Answer:
        self.found += 1
        self.kept += 1
        return Found()

    def leaving(self, _sites: Sequence[Site]) -> None:
        self.kept -= 1


@pytest.mark.parametrize("failure", ["raises", "later", "full"])
def test_a_provider_is_told_of_what_is_not_kept(
    host: Host, monkeypatch: pytest.MonkeyPatch, failure: str
) -> None:
    keeper, slow = Keeper(), Slow()
    host.files._providers = (keeper, slow if failure == "later" else host.provider)
    if failure == "raises":
        host.fault = MalformedError("it contradicts itself")
    if failure == "full":
        monkeypatch.setattr(host.files, "_is_full", lambda: True)
    host.process(10, host.file("other.so", OTHER))
    host.follow()
    assert (keeper.found, keeper.kept) == (1, 0)


@pytest.mark.parametrize("first", [True, False])
def test_the_order_of_providers_decides_nothing(host: Host, first: bool) -> None:
    """One that has nothing in a file is not asked again while another looks into it."""
    asked = []
    really = host.provider.find

    def find(file: int) -> Found | Answer:
        asked.append(file)
        return really(file)

    host.provider.find = find  # type: ignore[method-assign]
    slow = Slow()
    host.files._providers = (slow, host.provider) if first else (host.provider, slow)
    host.process(10, host.file("other.so", OTHER))
    for _ in range(5):
        host.follow()
    assert (slow.asked, len(asked), host.paths) == (3, 1, [])
    host.process(11, host.file("libssl.so"))
    for _ in range(5):
        host.follow()
    assert (slow.asked, len(host.paths), len(host.links)) == (6, 1, 5)
    assert [probed.sites[0].program for probed in host.files.probed("openssl")] == [
        "tl_ssl_read_ex"
    ]
    assert host.files.probed("slow") == ()
