"""Which file is behind a mapping: /proc is made of files here."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import pytest

from tests.unit.probes.host import (
    LIBSSL,
    OTHER,
    Host,
    container,
    device_of,
    maps,
)
from throughline.bpf import links
from throughline.probes import mappings
from throughline.text import to_json


def test_a_library_of_a_container(host: Host) -> None:
    """The same name in another root is another file."""
    inside = host.file("container/usr/lib/libssl.so")
    host.process(10, "/usr/lib/libssl.so", root=host.directory / "container")
    host.follow()
    assert host.paths == ["/usr/lib/libssl.so"]
    assert {link.file[1] for link in host.links} == {inside.stat().st_ino}


def test_a_library_of_a_chroot(host: Host) -> None:
    """The kernel names the file from our root, the process's root does not lead to it."""
    inside = host.file("chroot/usr/lib/libssl.so")
    (host.directory / "empty").mkdir()
    host.process(10, inside)
    (host.proc / "10" / "root").unlink()
    (host.proc / "10" / "root").symlink_to(host.directory / "empty")
    host.follow()
    assert host.paths == [str(inside)]


def test_what_is_no_file_is_passed_over(host: Host) -> None:
    fifo = host.directory / "fifo"
    os.mkfifo(fifo)
    host.process(10, fifo, "/memfd:doublemapper", "/dev/zero", "/SYSV00000000", host.directory)
    maps = host.proc / "10" / "maps"
    maps.write_text(f"{maps.read_text()}garbage\n\xff r-xp\n")
    host.follow()
    assert (host.paths, host.files.failures) == ([], {})


def test_a_file_that_cannot_be_reached_is_counted(host: Host) -> None:
    host.process(10, "/not/to/be/reached")
    host.follow()
    assert host.files.failures == {"unreachable": 1}


def test_long_mappings_are_cut(host: Host) -> None:
    path = host.file("libssl.so")
    host.process(10, path)
    line = "7f00-7f01 rw-p 00000000 08:01 4711   /x\n"
    maps = host.proc / "10" / "maps"
    maps.write_text(maps.read_text() + line * (6 << 20 >> 5))
    host.follow()
    assert host.paths == [str(path)]
    assert host.files.failures == {"maps_too_long": 1}


@pytest.mark.parametrize("way", ["file", "directory", "dots", "magic"])
def test_a_symlink_of_a_container_does_not_lead_to_a_file_of_ours(host: Host, way: str) -> None:
    """The kernel takes our root for a symlink that is met below /proc/PID/root."""
    ours = host.file("host/libssl.so")
    root = container(host)
    inside = root / "usr/lib/libssl.so"
    name = "/usr/lib/libssl.so"
    if way == "file":
        inside.symlink_to(ours)
    elif way == "directory":
        (root / "usr/lib").rmdir()
        (root / "usr/lib").symlink_to(ours.parent)
    elif way == "dots":
        inside.symlink_to("../" * 30 + str(ours))
    else:
        inside.symlink_to(f"/proc/self/root{ours}")
        (root / "proc").symlink_to("/proc")
    host.process(10, root=root)
    # even if it said that it maps the host's own file
    maps(host, 10, name, device_of(ours))
    host.follow()
    assert host.paths == []
    assert host.links == []
    assert set(host.files.failures) == {"unreachable"}


def test_symlinks_inside_of_a_container_are_its_own(host: Host) -> None:
    """An absolute one means the container's root, as for its processes."""
    root = container(host)
    real = root / "usr/lib/real.so"
    real.write_bytes(LIBSSL)
    (root / "usr/lib/libssl.so").symlink_to("/usr/lib/real.so")
    host.process(10, root=root)
    maps(host, 10, "/usr/lib/libssl.so", device_of(real))
    host.follow()
    assert {link.file[1] for link in host.links} == {real.stat().st_ino}


def test_only_what_is_mapped_is_probed(host: Host) -> None:
    """Another file under the same name: it was replaced, or somebody wants us to probe it."""
    path, other = host.file("libssl.so"), host.file("other.so", OTHER)
    host.process(10)
    maps(host, 10, str(path), device_of(other))
    host.follow()
    assert (host.paths, host.files.failures) == ([], {"other_file": 1})
    host.process(11)
    device, inode = device_of(path).split()
    maps(host, 11, str(path), f"01:{device.partition(':')[2]} {inode}")
    host.follow()
    assert (host.paths, host.files.failures) == ([], {"other_file": 2})


@pytest.mark.parametrize(
    ("kind", "same_inode", "probed"),
    [
        (0x794C7630, False, True),  # overlayfs: neither needs to be the same
        (0x9123683E, True, True),  # btrfs: the device differs
        (0x9123683E, False, False),
        (0xEF53, True, False),
    ],
)
def test_file_systems_whose_devices_differ(
    host: Host, monkeypatch: pytest.MonkeyPatch, kind: int, same_inode: bool, probed: bool
) -> None:
    monkeypatch.setattr(links, "filesystem", lambda _: kind)
    path = host.file("libssl.so")
    host.process(10)
    inode = path.stat().st_ino if same_inode else 4711
    maps(host, 10, str(path), f"00:7a {inode}")
    host.follow()
    assert bool(host.paths) is probed


def test_the_kernel_is_asked_what_is_mapped_where_that_is_permitted(host: Host) -> None:
    path, other = host.file("libssl.so"), host.file("other.so")
    for pid, behind in ((10, path), (11, other)):
        host.process(pid)
        maps(host, pid, str(path), "00:7a 4711")
        (host.proc / str(pid) / "map_files").mkdir()
        (host.proc / str(pid) / "map_files" / "7f00-7f01").symlink_to(behind)
    host.follow()
    assert [found.processes for found in host.files.attached] == [1]
    assert host.files.failures == {"other_file": 1}


def test_low_addresses_are_padded_in_maps_only(host: Host) -> None:
    """Those of a program that is no PIE. Each name must be an entry of map_files."""
    host.process(10)
    line = "0041f000-006d2000 r-xp 0001f000 fe:00 47   /usr/bin/x\n"
    (host.proc / "10" / "maps").write_text(line)
    (found,) = mappings.executed(host.proc, 10, Counter())
    assert (found.area, found.start) == ("41f000-6d2000", 0x41F000)
    entries = {entry.name for entry in Path("/proc/self/map_files").iterdir()}
    own = list(mappings.executed(Path("/proc"), os.getpid(), Counter()))
    assert own
    assert {one.area for one in own} <= entries


def test_a_name_that_is_no_utf8(host: Host, caplog: pytest.LogCaptureFixture) -> None:
    name = os.fsdecode(b"lib\xff\x1b[2J.so")
    path = host.file(name)
    host.process(10)
    line = f"7f00-7f01 r-xp 00001000 {device_of(path)}  {path}\n"
    (host.proc / "10" / "maps").write_bytes(os.fsencode(line))
    host.follow()
    (found,) = host.files.attached
    assert found.path == str(path) and len(host.links) == 5
    assert "\x1b" not in to_json(found.as_json("openssl"))
