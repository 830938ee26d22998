"""The Python view of bpf/core/abi.h is what the generator makes of the compiled object."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from throughline.bpf import abi

TREE = Path(__file__).parents[3]


def check(view: Path) -> subprocess.CompletedProcess[str]:
    generator, compiled = TREE / "bpf/generate_abi.py", TREE / "build/bpf/observe.bpf.o"
    command = [sys.executable, str(generator), str(compiled), str(view), "--check"]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_the_view_is_that_of_the_object() -> None:
    checked = check(Path(abi.__file__))
    assert checked.returncode == 0, checked.stderr


def test_a_view_that_differs_is_refused_and_stays_as_it_is(tmp_path: Path) -> None:
    other = tmp_path / "abi.py"
    text = Path(abi.__file__).read_text().replace("METHOD_MAX = 16", "METHOD_MAX = 17")
    other.write_text(text)
    checked = check(other)
    assert checked.returncode == 1 and "run make bpf" in checked.stderr
    assert other.read_text() == text
