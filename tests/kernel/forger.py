"""TCP segments made by hand: for a connection that stands, and for none at all."""

from __future__ import annotations

import socket
import struct

_REPAIR, _REPAIR_QUEUE, _QUEUE_SEQ, _REPAIR_OFF = 19, 20, 21, -1  # include/uapi/linux/tcp.h
_RECEIVE_QUEUE, _SEND_QUEUE = 1, 2


class Forger:
    """Writes segments of a client that stands, with options of its own."""

    def __init__(self, client: socket.socket, raw: socket.socket) -> None:
        self._raw = raw
        self._addresses = client.getsockname()[0], client.getpeername()[0]
        self._ports = client.getsockname()[1], client.getpeername()[1]
        self._family = client.family
        client.setsockopt(socket.IPPROTO_TCP, _REPAIR, 1)
        self.acknowledged = self._sequence(client, _RECEIVE_QUEUE)
        self.seq = self._sequence(client, _SEND_QUEUE)
        client.setsockopt(socket.IPPROTO_TCP, _REPAIR, _REPAIR_OFF)

    @staticmethod
    def _sequence(client: socket.socket, queue: int) -> int:
        client.setsockopt(socket.IPPROTO_TCP, _REPAIR_QUEUE, queue)
        return client.getsockopt(socket.IPPROTO_TCP, _QUEUE_SEQ) % 2**32

    def send(
        self, payload: bytes, *, options: bytes = b"", ahead: int = 0, again: bool = False
    ) -> None:
        """The next segment, which comes `again`, or one `ahead` in the stream or behind."""
        assert len(options) % 4 == 0 and len(options) <= 40
        header = struct.pack(
            ">HHIIBBHHH",
            *self._ports,
            (self.seq + ahead) % 2**32,
            self.acknowledged,
            (20 + len(options)) // 4 << 4,
            0x18,  # PSH, ACK
            512,
            0,
            0,
        )
        segment = header + options + payload
        segment = segment[:16] + struct.pack(">H", self._checksum(segment)) + segment[18:]
        self._raw.sendto(segment, (self._addresses[1], 0))
        if not ahead and not again:
            self.seq += len(payload)

    def _checksum(self, segment: bytes) -> int:
        addresses = b"".join(socket.inet_pton(self._family, a) for a in self._addresses)
        return checksum(addresses + struct.pack(">II", len(segment), socket.IPPROTO_TCP) + segment)


class Stranger:
    """Writes segments that belong to no connection, from any address of loopback's network.

    Checksums are right, so that nothing but TCP itself can tell what they are.
    """

    def __init__(self, port: int, *, destination: str = "127.0.0.1") -> None:
        self._raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
        self._port = port
        self._destination = destination
        self._packed = socket.inet_aton(destination)

    def __enter__(self) -> Stranger:
        return self

    def __exit__(self, *_: object) -> None:
        self._raw.close()

    def send(
        self,
        payload: bytes,
        *,
        source: str,
        port: int,
        seq: int = 23,
        acknowledged: int = 42,
        options: bytes = b"",
    ) -> None:
        """One data segment with ACK, as from a connection that stands."""
        header = struct.pack(
            ">HHIIBBHHH",
            *(port, self._port, seq % 2**32, acknowledged % 2**32),
            *((20 + len(options)) // 4 << 4, 0x18, 512, 0, 0),
        )
        segment = header + options + payload
        addresses = socket.inet_aton(source) + self._packed
        data = addresses + struct.pack(">II", len(segment), socket.IPPROTO_TCP) + segment
        segment = segment[:16] + struct.pack(">H", checksum(data)) + segment[18:]
        # the kernel fills in length, identification and checksum (raw(7))
        packet = struct.pack(">BBHHHBBH", 0x45, 0, 0, 0, 0, 64, socket.IPPROTO_TCP, 0) + addresses
        self._raw.sendto(packet + segment, (self._destination, 0))


def checksum(data: bytes) -> int:
    """The Internet checksum (RFC 1071)."""
    data += bytes(len(data) % 2)
    total: int = sum(struct.unpack(f">{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF
