"""The memory of a HotSpot, made by hand: a file that stands for /proc/PID/mem."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tests.fixtures import elffile
from throughline.runtimes.java import vmstructs

PID, BORN = 4711, 815
BASE = 0x100000  # what is added to addresses of the file
TABLE_AT, TEXTS_AT, STATICS_AT, OBJECTS_AT = 0x200000, 0x300000, 0x400000, 0x500000
NEIGHBOURS = ("Reference Handl", "Finalizer", "Signal Dispatch")
EXPORTS = ("gHotSpotVMStructs", *vmstructs._SHAPE)


def libjvm() -> bytes:
    """A file that exports what a libjvm.so does."""
    return elffile.build(dict.fromkeys(EXPORTS, b"") | {".code": b"\xc3"}, kind=1)


def exported(name: str) -> int:
    """The address of a variable of `libjvm`, as linked."""
    return elffile.TEXT_ADDRESS + EXPORTS.index(name) * elffile.APART


FIELDS_17: Mapping[str, int] = {
    "ThreadsList::_length": 4,
    "ThreadsList::_threads": 16,
    "JavaThread::_osthread": 560,
    "JavaThread::_thread_state": 824,
    "JavaThread::_threadObj": 648,
    "OSThread::_thread_id": 208,
}
FIELDS_21 = {**FIELDS_17, "JavaThread::_vthread": 896}
FIELDS_25 = {
    **{name: at for name, at in FIELDS_21.items() if name != "JavaThread::_osthread"},
    "Thread::_osthread": 1016,
    "JavaThread::_monitor_owner_id": 1312,
    "JavaThread::_cont_entry": 1560,
}


@dataclass
class HotSpot:
    """What to put into the memory."""

    release: str = "21.0.8+9-LTS"
    fields: Mapping[str, int] = field(default_factory=lambda: dict(FIELDS_21))
    eetop: int = 16
    tid: int = 24
    colored: int = 0  # the bits 12 to 15 of pointers to objects, or 0: they are addresses
    threads: tuple[str, ...] = ("main", *NEIGHBOURS)
    stride: int = 48
    ends: bool = True
    texts: dict[str, int] = field(default_factory=dict)

    def write(self, proc: Path) -> None:
        """Makes the files of a process: mem, and the names of its threads."""
        directory = proc / str(PID)
        directory.mkdir(parents=True, exist_ok=True)
        with (directory / "mem").open("wb") as self._mem:
            self._put(BASE + exported("gHotSpotVMStructs"), TABLE_AT)
            for name, value in {**vmstructs._SHAPE, EXPORTS[1]: self.stride}.items():
                self._put(BASE + exported(name), value)
            self._write_table()
            self._write_threads()
        for number, name in enumerate(self.threads):
            task = directory / "task" / str(900 + number)
            task.mkdir(parents=True, exist_ok=True)
            (task / "status").write_text(f"Name:\t{name}\nNSpid:\t{900 + number}\t{10 + number}\n")

    def _put(self, address: int, *words: int) -> None:
        self._mem.seek(address)
        self._mem.write(struct.pack(f"<{len(words)}Q", *words))

    def _text(self, text: str) -> int:
        if text not in self.texts:
            address = TEXTS_AT + 0x80 * len(self.texts)
            self.texts[text] = address
            self._mem.seek(address)
            self._mem.write(text.encode().ljust(0x80, b"\0"))
        return self.texts[text]

    def _write_table(self) -> None:
        statics = {
            "ThreadsSMRSupport::_java_thread_list": STATICS_AT,
            "Abstract_VM_Version::_s_vm_release": STATICS_AT + 8,
        }
        self._put(STATICS_AT, OBJECTS_AT, self._text(self.release) if self.release else 0)
        entries = [(name, 0, at, 0) for name, at in self.fields.items()]
        entries += [(name, 1, 0, at) for name, at in statics.items()]
        entries.append(("Unwanted::_field", 0, 4, 0))
        kind_at = 0
        for number, (name, static, offset, address) in enumerate(entries):
            kind, _, what = name.partition("::")
            at = TABLE_AT + number * 48
            kind_at = self._text(kind)
            self._put(at, kind_at, self._text(what), 0, static, offset, address)
        behind = 1 if self.ends else 9000
        self._put(TABLE_AT + len(entries) * 48, *([0 if self.ends else kind_at, 0] * 3 * behind))

    def _write_threads(self) -> None:
        fields = self.fields
        osthread = fields.get("Thread::_osthread", fields.get("JavaThread::_osthread", 0))
        listed = OBJECTS_AT
        self._mem.seek(listed + fields["ThreadsList::_length"])
        self._mem.write(struct.pack("<I", len(self.threads)))
        self._put(listed + fields["ThreadsList::_threads"], listed + 0x100)
        for number, _ in enumerate(self.threads):
            thread = OBJECTS_AT + 0x10000 * (number + 1)
            self._put(listed + 0x100 + number * 8, thread)
            self._put(thread + osthread, thread + 0x4000)
            self._mem.seek(thread + 0x4000 + fields["OSThread::_thread_id"])
            self._mem.write(struct.pack("<I", 10 + number))
            self._put(thread + fields["JavaThread::_threadObj"], thread + 0x6000)
            where = thread + 0x8000
            pointer = where << (12 + self.colored.bit_length()) if self.colored else where
            self._put(thread + 0x6000, pointer | self.colored << 12)
            self._put(where, 1, 0x900001C140, *([0] * 14))
            self._put(where + self.eetop, thread)
            self._put(where + self.tid, 8 + number)
