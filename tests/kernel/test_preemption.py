"""Uprobes keep their variables on the stack of their task: decision 10.

What comes of it otherwise shows only on kernels that preempt: tests/golang/test_write_in_vm.py.
"""

from __future__ import annotations

import ctypes
import json
import os
import platform
import re
import struct
import subprocess

import pytest

from tests.kernel.kernel_objects import held_by
from tests.kernel.traced import CHECKOUT, Traced

# add %gs:this_cpu_off, %r9: how a function of the JIT of x86 comes to a stack of its processor
OF_THE_PROCESSOR = bytes.fromhex("654c030c25")


SYS_BPF, GET_FD_BY_ID, GET_INFO = 321, 13, 15  # of x86
INFO = struct.Struct("=II8sIIQQ")  # type, id, tag, lengths and places of machine code and program


def bpf(command: int, attributes: bytes) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    buffer = ctypes.create_string_buffer(attributes, len(attributes))
    found = int(libc.syscall(SYS_BPF, command, buffer, len(attributes)))
    assert found >= 0, os.strerror(ctypes.get_errno())
    return found


def machine_code(number: int) -> bytes:
    """Of all functions of a program."""
    fd = bpf(GET_FD_BY_ID, struct.pack("=III", number, 0, 0))
    try:
        length, code = 0, ctypes.create_string_buffer(1)
        for _ in range(2):  # how long it is, and then what it is
            code = ctypes.create_string_buffer(length or 1)
            place = ctypes.addressof(code) if length else 0
            info = ctypes.create_string_buffer(INFO.pack(0, 0, b"", length, 0, place, 0), INFO.size)
            bpf(GET_INFO, struct.pack("=IIQ", fd, INFO.size, ctypes.addressof(info)))
            length = INFO.unpack(info.raw)[3]
    finally:
        os.close(fd)
    assert any(code.raw), "the kernel does not show it"
    return code.raw


@pytest.mark.parametrize("name", ["go", "go_write", "tls"])
def test_every_uprobe_has_a_tail_call(name: str) -> None:
    path = CHECKOUT / f"build/bpf/{name}.bpf.o"
    command = ["llvm-objdump", "--disassemble", "--no-show-raw-insn", str(path)]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found: list[tuple[str, str]] = []
    for section in re.split(r"^Disassembly of section ", text, flags=re.MULTILINE)[1:]:
        if section.startswith(("uprobe", "uretprobe")):
            parts = re.split(r"^[0-9a-f]+ <(tl_\w+)>:\n", section, flags=re.MULTILINE)
            found += zip(parts[1::2], parts[2::2], strict=True)
    assert found
    assert [program for program, code in found if not re.search(r"\bcall 12\b", code)] == []


@pytest.mark.skipif(platform.machine() != "x86_64", reason="knows the machine code of x86")
def test_no_uprobe_has_a_stack_of_its_processor() -> None:
    with Traced() as traced:
        assert traced.agent is not None
        shown = subprocess.run(["bpftool", "-j", "prog"], check=True, capture_output=True).stdout
        ours = held_by(traced.agent.pid)["prog"]
        programs = [one for one in json.loads(shown) if one["id"] in ours]
        code = {one["name"]: machine_code(one["id"]) for one in programs}
        probes = {one["name"] for one in programs if one["type"] == "kprobe"}
    assert {"tl_go_serve", "tl_ssl_write"} <= probes
    assert [name for name in sorted(probes) if OF_THE_PROCESSOR in code[name]] == []
    # what is looked for is there where nobody comes in between
    version = tuple(map(int, platform.release().split("-")[0].split(".")[:2]))
    assert (OF_THE_PROCESSOR in code["tl_read"]) == (version >= (6, 13))
