"""Uprobes leave the stack alone until nobody can preempt them.

What comes of it otherwise shows only on kernels that preempt: tests/golang/test_write_in_vm.py.
"""

from __future__ import annotations

import re
import subprocess

import pytest

from tests.kernel.traced import CHECKOUT

OBJECTS = ("go", "go_write", "tls")


def programs(name: str) -> dict[str, str]:
    """The instructions of each uprobe of an object."""
    path = CHECKOUT / f"build/bpf/{name}.bpf.o"
    command = ["llvm-objdump", "--disassemble", "--no-show-raw-insn", "--reloc", str(path)]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found = {}
    for section in re.split(r"^Disassembly of section ", text, flags=re.MULTILINE)[1:]:
        if re.match("uprobe|uretprobe", section):
            parts = re.split(r"^[0-9a-f]+ <(tl_\w+)>:\n", section, flags=re.MULTILINE)
            found.update(zip(parts[1::2], parts[2::2], strict=True))
    return found


@pytest.mark.parametrize("name", OBJECTS)
def test_the_stack_is_not_touched_while_preemption_is_on(name: str) -> None:
    found = programs(name)
    assert found
    for program, text in found.items():
        first, last = text.find("bpf_preempt_disable"), text.find("bpf_preempt_enable")
        assert 0 < first < last, program
        assert "r10" not in text, program
        assert len(re.findall(r"\bcall\b", text)) == 3, program
