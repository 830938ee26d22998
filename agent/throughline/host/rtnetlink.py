"""The qdiscs and TC filters of one interface, listed by rtnetlink(7).

libbpf adds and removes filters, but it has no function that lists them.
Layouts: include/uapi/linux/netlink.h, rtnetlink.h and pkt_cls.h.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass

# include/uapi/linux/pkt_sched.h: TC_H_MAKE(TC_H_CLSACT, TC_H_MIN_INGRESS or TC_H_MIN_EGRESS)
INGRESS, EGRESS = 0xFFFFFFF2, 0xFFFFFFF3

_HEADER = struct.Struct("=IHHII")  # struct nlmsghdr: length, type, flags, sequence, port
_TCMSG = struct.Struct("=BxxxiIII")  # struct tcmsg: family, interface, handle, parent, info
_ATTRIBUTE = struct.Struct("=HH")  # struct nlattr: length, type
_ERROR, _DONE = 2, 3  # NLMSG_ERROR, NLMSG_DONE
_REQUEST, _DUMP = 0x001, 0x300  # NLM_F_REQUEST, NLM_F_DUMP
_GETQDISC, _GETTFILTER = 38, 46  # RTM_GETQDISC, RTM_GETTFILTER
_KIND, _OPTIONS = 1, 2  # TCA_KIND, TCA_OPTIONS
_BPF_NAME = 7  # TCA_BPF_NAME, inside of TCA_OPTIONS
_TYPE_MASK = 0x3FFF  # NLA_TYPE_MASK
_RECEIVE_BYTES = 1 << 16  # a kernel sends at most 32 KB at once


@dataclass(frozen=True, slots=True)
class Filter:
    """A filter of a qdisc."""

    handle: int
    priority: int
    kind: str  # "bpf", "u32", "flower", …
    name: str  # TCA_BPF_NAME of a bpf filter, "" of others


def filters(index: int, parent: int) -> list[Filter]:
    """The filters at one hook of an interface; none when there is no such interface or qdisc.

    `parent` is INGRESS or EGRESS. For each priority the kernel also lists a head, whose handle is
    0: it is left out. Raises OSError when the kernel refuses the request.
    """
    try:
        return [
            _filter(handle, info, attributes)
            for _, handle, info, attributes in _dump(_GETTFILTER, index, parent)
            if handle
        ]
    except OSError as error:
        if error.errno in (errno.ENODEV, errno.ENOENT, errno.EINVAL):
            return []
        raise


def qdiscs(index: int) -> list[str]:
    """The kinds of the qdiscs of an interface. Raises OSError when the kernel refuses."""
    return [  # the kernel lists those of all interfaces
        _text(attributes.get(_KIND, b""))
        for interface, _, _, attributes in _dump(_GETQDISC, 0, 0)
        if interface == index
    ]


def _filter(handle: int, info: int, attributes: dict[int, bytes]) -> Filter:
    kind = _text(attributes.get(_KIND, b""))
    options = _attributes(attributes.get(_OPTIONS, b"")) if kind == "bpf" else {}
    return Filter(handle, info >> 16, kind, _text(options.get(_BPF_NAME, b"")))


def _dump(
    request: int, index: int, parent: int
) -> Iterator[tuple[int, int, int, dict[int, bytes]]]:
    """Interface, handle, info and attributes of each object that the kernel lists."""
    body = _TCMSG.pack(socket.AF_UNSPEC, index, 0, parent, 0)
    header = _HEADER.pack(_HEADER.size + len(body), request, _REQUEST | _DUMP, 1, 0)
    kind = socket.SOCK_RAW | socket.SOCK_CLOEXEC
    with socket.socket(socket.AF_NETLINK, kind, socket.NETLINK_ROUTE) as netlink:
        netlink.bind((0, 0))
        netlink.send(header + body)
        while True:
            for answer, data in _messages(netlink.recv(_RECEIVE_BYTES)):
                if answer in (_ERROR, _DONE):
                    (code,) = struct.unpack_from("=i", data)
                    if code < 0:
                        raise OSError(-code, f"rtnetlink dump: {os.strerror(-code)}")
                    return
                _, interface, handle, _, info = _TCMSG.unpack_from(data)
                yield interface, handle, info, _attributes(data[_TCMSG.size :])


def _messages(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Type and body of each message of a datagram."""
    while data:
        length, kind, *_ = _HEADER.unpack_from(data)
        yield kind, data[_HEADER.size : length]
        data = data[_aligned(length) :]


def _attributes(data: bytes) -> dict[int, bytes]:
    """Values by type."""
    found = {}
    while data:
        length, kind = _ATTRIBUTE.unpack_from(data)
        found[kind & _TYPE_MASK] = data[_ATTRIBUTE.size : length]
        data = data[_aligned(length) :]
    return found


def _aligned(length: int) -> int:
    return (length + 3) & ~3


def _text(value: bytes) -> str:
    return value.rstrip(b"\0").decode(errors="replace")
