"""Ring buffers: records of the BPF programs, read in the order in which they were written."""

from __future__ import annotations

import ctypes
import errno
from collections.abc import Callable

from throughline.bpf.prototypes import RECORD_CALLBACK, check, failure, library


class RingBuffer:
    """A ring buffer whose records are given to `on_record` as bytes.

    ctypes swallows exceptions of callbacks, so the first one is kept and `consume` raises it.
    """

    def __init__(self, map_fd: int, on_record: Callable[[bytes], None]) -> None:
        self._on_record = on_record
        self._failure: BaseException | None = None
        self._callback = RECORD_CALLBACK(self._receive)
        self._handle = library().ring_buffer__new(map_fd, self._callback, None, None)
        if not self._handle:
            raise failure("ring_buffer__new")

    def _receive(self, _context: int, data: int, size: int) -> int:
        try:
            self._on_record(ctypes.string_at(data, size))
        except BaseException as error:
            self._failure = error
            return -errno.EIO
        return 0

    def consume(self) -> int:
        """Gives all records that the buffer holds to `on_record`; returns their number."""
        count = library().ring_buffer__consume(self._handle)
        if self._failure:
            kept, self._failure = self._failure, None
            raise kept
        return check(count, "ring_buffer__consume")

    def close(self) -> None:
        if self._handle:
            library().ring_buffer__free(self._handle)
            self._handle = None
