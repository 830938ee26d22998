"""Hash maps read as a whole, by BPF_MAP_LOOKUP_BATCH (Linux 5.6): many entries in one call."""

from __future__ import annotations

import ctypes
import errno
from collections.abc import Iterator
from dataclasses import dataclass

from throughline.bpf import libbpf
from throughline.bpf.prototypes import check, library

_BATCH_BYTES = 1 << 20
_MAX_BATCH = 1 << 16
# what a kernel says that does not know the call, or not for this type of map; 524 is ENOTSUPP
_NO_BATCHES = {errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, 524}

Batch = list[tuple[bytes, memoryview]]


@dataclass(frozen=True, slots=True)
class Hash:
    """A hash map. For a per-CPU one `value_size` is that of all CPUs together."""

    fd: int
    key_size: int
    value_size: int

    def entries(self) -> Iterator[Batch]:
        """Keys and values, in batches of about 1 MB.

        Entries that appear or vanish meanwhile may be missed. A batch is valid until the next one
        is asked for.
        """
        count = max(16, min(512, _BATCH_BYTES // self.value_size))
        keys = (ctypes.c_char * (self.key_size * count))()
        values = (ctypes.c_char * (self.value_size * count))()
        position = None
        while True:
            following = ctypes.create_string_buffer(max(self.key_size, 8))
            number = ctypes.c_uint32(count)
            result = library().bpf_map_lookup_batch(
                self.fd, position, following, keys, values, ctypes.byref(number), None
            )
            if result == -errno.ENOSPC and count < _MAX_BATCH:
                count *= 2  # a bucket of the hash holds more than a batch
                keys = (ctypes.c_char * (self.key_size * count))()
                values = (ctypes.c_char * (self.value_size * count))()
                continue
            if -result in _NO_BATCHES and position is None:
                yield from self._one_by_one()
                return
            if result != -errno.ENOENT:  # that is the end of the map
                check(result, "bpf_map_lookup_batch")
            yield self._split(keys.raw, memoryview(values).cast("B"), number.value)
            if result:
                return
            position = following

    def lookup(self, key: bytes) -> bytes | None:
        return libbpf.lookup(self.fd, key, self.value_size)

    def delete(self, key: bytes) -> None:
        libbpf.delete(self.fd, key)

    def _split(self, keys: bytes, values: memoryview, count: int) -> Batch:
        key, value = self.key_size, self.value_size
        return [
            (keys[n * key : (n + 1) * key], values[n * value : (n + 1) * value])
            for n in range(count)
        ]

    def _one_by_one(self) -> Iterator[Batch]:
        for key in libbpf.keys(self.fd, self.key_size):
            value = self.lookup(key)
            if value is not None:
                yield [(key, memoryview(value))]
