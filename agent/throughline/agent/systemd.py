"""Messages to systemd about the state of the service: sd_notify(3)."""

from __future__ import annotations

import os
import socket
import time

READY, STOPPING = "READY=1", "STOPPING=1"
RELOADING = "RELOADING=1"
# The unit's TimeoutStartSec is for one feature group; each group gets as much again.
ONE_MINUTE_MORE = "EXTEND_TIMEOUT_USEC=60000000"


def notify(message: str) -> None:
    """Tells systemd, when it listens. Raises OSError."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    if message == RELOADING:
        usec = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        message = f"{message}\nMONOTONIC_USEC={usec}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as connection:
        connection.sendto(message.encode(), address)
