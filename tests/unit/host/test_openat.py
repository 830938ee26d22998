"""A path of a container is looked up in the container."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from throughline.host import openat


@pytest.fixture
def root(tmp_path: Path) -> Iterator[int]:
    inside = tmp_path / "container"
    (inside / "usr/lib").mkdir(parents=True)
    (inside / "usr/lib/libssl.so.3").write_text("inside")
    (inside / "lib").symlink_to("/usr/lib")
    (inside / "up").symlink_to("../../../../../../usr/lib")
    (inside / "usr/lib/libssl.so").symlink_to("libssl.so.3")
    (inside / "usr/out").symlink_to(tmp_path / "secret")
    (inside / "loop").symlink_to("loop")
    (tmp_path / "secret").write_text("outside")
    fd = os.open(inside, os.O_PATH)
    yield fd
    os.close(fd)


def content(fd: int) -> str:
    try:
        return Path(f"/proc/self/fd/{fd}").read_text()
    finally:
        os.close(fd)


@pytest.mark.parametrize(
    "name",
    [
        "/usr/lib/libssl.so.3",
        "usr//lib/./libssl.so",
        "/lib/libssl.so",
        "/up/libssl.so.3",
        "/usr/../../lib/../lib/libssl.so.3",
    ],
)
def test_a_name_stays_below_its_root(root: int, name: str) -> None:
    assert content(openat.below(root, name)) == "inside"


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("/usr/out", errno.ENOENT),
        ("/loop", errno.ELOOP),
        ("/usr/lib/libssl.so.3/x", errno.ENOTDIR),
        ("/" + "a/" * 300, errno.ENOENT),
    ],
)
def test_what_leads_nowhere_inside_leads_nowhere(root: int, name: str, code: int) -> None:
    before = os.listdir("/proc/self/fd")  # noqa: PTH208
    with pytest.raises(OSError) as error:
        openat.below(root, name)
    assert error.value.errno == code
    assert os.listdir("/proc/self/fd") == before, "nothing stays open"  # noqa: PTH208


def test_a_deep_path_ends(root: int, tmp_path: Path) -> None:
    deep = tmp_path / "container" / "/".join(["d"] * 300)
    deep.mkdir(parents=True)
    with pytest.raises(OSError) as error:
        openat.below(root, "d/" * 300)
    assert error.value.errno == errno.ENAMETOOLONG


def test_without_symlinks(root: int, tmp_path: Path) -> None:
    inside = tmp_path / "container"
    assert content(openat.without_symlinks(f"{inside}/usr/lib/libssl.so.3")) == "inside"
    with pytest.raises(OSError) as error:
        openat.without_symlinks(f"{inside}/usr/lib/libssl.so")
    assert error.value.errno == errno.ELOOP
