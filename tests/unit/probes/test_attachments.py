"""Probes that the kernel refuses, and probes that do not go."""

from __future__ import annotations

import errno
import os

import pytest

from tests.unit.probes.host import (
    FakeLink,
    Host,
)
from throughline.probes.attachments import release


def test_a_probe_that_does_not_go_holds_no_file(host: Host) -> None:
    class Stuck(FakeLink):
        def destroy(self) -> None:
            raise OSError(errno.EBADF, "Bad file descriptor")

    path = host.file("libssl.so")
    fd = os.open(path, os.O_RDONLY)
    with pytest.raises(OSError, match="Bad file"):
        release([Stuck(host, "tl_ssl_free", (0, 0))], fd)
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(fd)


def test_a_refused_attachment_is_tried_again(host: Host) -> None:
    host.process(10, host.file("libssl.so"))
    host.refusal = OSError(12, "Cannot allocate memory")
    host.follow()
    assert host.links == []
    (found,) = host.files.attached
    assert found.refused == "tl_ssl_free: Cannot allocate memory"
    assert host.files.failures == {"attach_refused": 1}
    host.refusal = None
    host.follow(29)
    assert host.links == []
    host.follow()
    assert len(host.links) == 5
    assert host.files.attached[0].refused == ""


def test_a_file_that_needs_a_refused_program_is_not_followed_by_half(host: Host) -> None:
    host.programs.pop("tl_ssl_free")
    host.process(10, host.file("libssl.so"))
    host.follow()
    assert host.links == []
    assert host.files.failures == {"no_program": 1}
    (found,) = host.files.attached
    assert found.refused == "this kernel refuses tl_ssl_free"
    host.follow(600)
    assert host.files.failures == {"no_program": 1}, "it is not tried again: nothing changes"
