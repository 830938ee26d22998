"""Uprobes keep their variables on the stack of their task: decision 10.

tests/kernel/go/test_write_in_vm.py has a kernel that preempts, where a mistake would show.
"""

from __future__ import annotations

import ctypes
import os
import platform
import re
import struct
import subprocess

import pytest

from tests.fixtures.kernel_objects import bpftool, held_by
from tests.fixtures.paths import CHECKOUT
from tests.fixtures.traced import Traced
from throughline.bpf import prototypes

# add %gs:this_cpu_off, %r9: how a function of the JIT of x86 comes to a stack of its processor
OF_THE_PROCESSOR = bytes.fromhex("654c030c25")
# struct bpf_prog_info: type, id, tag, lengths of machine code and program, place of machine code
INFO = struct.Struct("=II8sIIQ")


def machine_code(number: int) -> bytes:
    """The machine code of all functions of a program."""
    lib = prototypes.library()
    fd = prototypes.check(lib.bpf_prog_get_fd_by_id(number), "bpf_prog_get_fd_by_id")
    try:
        code = ctypes.create_string_buffer(prototypes.info(fd)[4])
        place = ctypes.addressof(code)
        info = ctypes.create_string_buffer(INFO.pack(0, 0, b"", len(code), 0, place), INFO.size)
        size = ctypes.c_uint32(INFO.size)
        said = lib.bpf_obj_get_info_by_fd(fd, info, ctypes.byref(size))
        prototypes.check(said, "bpf_obj_get_info_by_fd")
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
        ours = held_by(traced.agent.pid)["prog"]
        programs = [one for one in bpftool("prog", "show") if one["id"] in ours]
        code = {one["name"]: machine_code(one["id"]) for one in programs}
        probes = {one["name"] for one in programs if one["type"] == "kprobe"}
    assert {"tl_go_serve", "tl_ssl_write"} <= probes
    assert [name for name in sorted(probes) if OF_THE_PROCESSOR in code[name]] == []
    # programs that no task can preempt do use the stack of the processor
    version = tuple(map(int, platform.release().split("-")[0].split(".")[:2]))
    assert (OF_THE_PROCESSOR in code["tl_read"]) == (version >= (6, 13))
