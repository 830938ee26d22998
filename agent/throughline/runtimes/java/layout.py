"""What the programs have to know of a HotSpot: struct tl_java_binary."""

from __future__ import annotations

import errno
import re
from collections.abc import Mapping
from dataclasses import dataclass

from throughline.bpf import abi
from throughline.host.memory import Memory
from throughline.runtimes.java.vmstructs import Exports, Field, NotYetError, UnsupportedError, read

UNKNOWN = int(abi.Java.UNKNOWN)
_OLDEST, _NEWEST = 17, 25  # Java releases
_VIRTUAL, _OWNER = 21, 24  # the first with virtual threads; with the owner's id in the JavaThread
_MAX_OFFSET = 1 << 14
_MAX_LISTED = 1 << 16
_LOOKED_AT = 16  # threads from the start of the list: HotSpot's own are among them
_OBJECT_BYTES = 128
_LONG = 8
# Member of struct tl_java_binary -> fields of HotSpot, of which one is there.
_FIELDS: Mapping[str, tuple[str, ...]] = {
    "list_length": ("ThreadsList::_length",),
    "list_threads": ("ThreadsList::_threads",),
    "thread_osthread": ("Thread::_osthread", "JavaThread::_osthread"),
    "thread_state": ("JavaThread::_thread_state",),
    "osthread_id": ("OSThread::_thread_id",),
}
_VIRTUAL_FIELDS: Mapping[str, tuple[str, ...]] = {
    "thread_vthread": ("JavaThread::_vthread",),
}
_OWNER_FIELDS: Mapping[str, tuple[str, ...]] = {
    "thread_owner": ("JavaThread::_monitor_owner_id", "JavaThread::_lock_id"),
    "thread_entry": ("JavaThread::_cont_entry",),
}
_RELEASE_TEXT = re.compile(r"([0-9]{1,3})([.+_~-][0-9A-Za-z.+_~-]*)?")
_LIST = "ThreadsSMRSupport::_java_thread_list"
_OBJECT = "JavaThread::_threadObj"
_RELEASE = "Abstract_VM_Version::_s_vm_release"
_CLASSES = {"ThreadsSMRSupport", "ThreadsList", "Thread", "JavaThread", "OSThread"} | {
    "Abstract_VM_Version"
}
# Threads that HotSpot starts one after the other, so that their ids follow each other: names as the
# kernel has them (TASK_COMM_LEN).
_NEIGHBOURS = ("Reference Handl", "Finalizer", "Signal Dispatch")


@dataclass(frozen=True, slots=True)
class Layout:
    """Offsets of a build of HotSpot, and its release, such as 25.0.3+9-LTS."""

    release: str
    members: Mapping[str, int]  # of struct tl_java_binary; those that are missing are unknown

    def pack(self) -> bytes:
        """struct tl_java_binary."""
        unknown = dict.fromkeys(abi.JavaBinary._fields, UNKNOWN)
        return abi.JAVA_BINARY.pack(*abi.JavaBinary(**(unknown | dict(self.members))))


def find(memory: Memory, base: int, exports: Exports, names: Mapping[int, str]) -> Layout:
    """The layout of the HotSpot in a process.

    `base`: what is added to addresses as linked. `names`: the kernel's names of its threads, by id
    as the process sees it. Raises OSError, UnsupportedError, NotYetError.
    """
    fields = read(memory, base, exports, _CLASSES)
    release, major = _release(memory, fields)
    if not _OLDEST <= major <= _NEWEST:
        raise UnsupportedError(f"Java {release} is not known")
    wanted = dict(_FIELDS)
    if major >= _VIRTUAL:
        wanted |= _VIRTUAL_FIELDS
    if major >= _OWNER:
        wanted |= _OWNER_FIELDS
    members = {member: _offset(fields, among) for member, among in wanted.items()}
    members["threads"] = _static(fields, _LIST) - base
    if members["threads"] < 0:
        raise UnsupportedError(f"{_LIST} is no variable of the library")
    if _VIRTUAL <= major < _OWNER:
        where = _Threads(memory, base, members, _offset(fields, (_OBJECT,)))
        members["object_eetop"], members["object_tid"] = where.object_fields(names)
    return Layout(release, members)


def _release(memory: Memory, fields: Mapping[str, Field]) -> tuple[str, int]:
    """The release of Java, and the number that it begins with."""
    at = memory.word(_static(fields, _RELEASE))
    if not at:
        raise NotYetError("the release is not set yet")
    release = memory.name(at)
    found = _RELEASE_TEXT.fullmatch(release)
    if found is None:
        raise UnsupportedError("its release is no release of Java")
    return release, int(found[1])


def _static(fields: Mapping[str, Field], name: str) -> int:
    field = fields.get(name)
    if field is None or not field.address:
        raise UnsupportedError(f"it does not export {name}")
    return field.address


def _offset(fields: Mapping[str, Field], among: tuple[str, ...]) -> int:
    for name in among:
        field = fields.get(name)
        if field is not None and not field.address and 0 <= field.offset < _MAX_OFFSET:
            return field.offset
    raise UnsupportedError(f"it does not export {among[0]}")


@dataclass(frozen=True, slots=True)
class _Threads:
    """The threads of a JVM."""

    memory: Memory
    base: int
    members: Mapping[str, int]
    object_at: int  # the handle of the java.lang.Thread, in a JavaThread

    def object_fields(self, names: Mapping[int, str]) -> tuple[int, int]:
        """Where `eetop` and `tid` are in a java.lang.Thread, which HotSpot does not export.

        The `eetop` of a platform thread is the address of its JavaThread. The `tid`s of threads
        that HotSpot starts one after the other follow each other.
        """
        objects = dict(self._neighbours(names))
        if objects.keys() != set(_NEIGHBOURS):
            raise NotYetError("its own threads have not begun yet")
        eetops = [_places(words, thread) for thread, words in objects.values()]
        common = set.intersection(*eetops)
        if len(common) != 1:
            raise UnsupportedError("java.lang.Thread has no eetop that can be read")
        first, second, third = (objects[name][1] for name in _NEIGHBOURS)
        tids = {
            place * _LONG
            for place in range(1, len(first))
            if 0 < first[place] == second[place] - 1 == third[place] - 2
        }
        if len(tids) != 1:
            raise UnsupportedError("java.lang.Thread has no tid that can be read")
        return common.pop(), tids.pop()

    def _neighbours(
        self, names: Mapping[int, str]
    ) -> list[tuple[str, tuple[int, tuple[int, ...]]]]:
        """Name -> address of the JavaThread, and words of its java.lang.Thread."""
        memory, members = self.memory, self.members
        listed = memory.word(self.base + members["threads"])
        if not listed:
            raise NotYetError("there is no list of threads yet")
        count = memory.half(listed + members["list_length"])
        if not 0 <= count <= _MAX_LISTED:
            raise UnsupportedError(f"its list has {count} threads")
        threads = memory.word(listed + members["list_threads"])
        found = []
        for number in range(min(count, _LOOKED_AT)):
            thread = memory.word(threads + number * _LONG)
            os_thread = memory.word(thread + members["thread_osthread"])
            name = names.get(memory.half(os_thread + members["osthread_id"]), "")
            if name in _NEIGHBOURS:
                pointer = memory.word(memory.word(thread + self.object_at))
                found.append((name, (thread, self._words(pointer))))
        return found

    def _words(self, pointer: int) -> tuple[int, ...]:
        """The words of an object. A pointer of ZGC is tried as such, too (java_thread.h)."""
        try:
            data = self.memory.read(pointer, _OBJECT_BYTES)
        except OSError:
            bit = pointer >> 12 & 15
            if bit not in (1, 2, 4, 8):
                raise
            data = self.memory.read(pointer >> (12 + bit.bit_length()), _OBJECT_BYTES)
        if not data:
            raise OSError(errno.EFAULT, "no object")
        return tuple(memoryview(data).cast("Q").tolist())


def _places(words: tuple[int, ...], value: int) -> set[int]:
    return {place * _LONG for place, word in enumerate(words) if word == value}
