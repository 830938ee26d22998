"""The current release: how an agent executes it in its own place."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NoReturn


def program() -> str:
    """The launcher of the bundle, which may be newer than this process; else this Python."""
    return os.environ.get("THROUGHLINE_LAUNCHER") or sys.executable


def execute(program: str, config: Path, variables: Mapping[str, str]) -> NoReturn:
    """Executes the agent of the current release instead of this one. Raises OSError."""
    named = ["--config", str(config)] if config.exists() else []
    module = [] if "THROUGHLINE_LAUNCHER" in os.environ else ["-m", "throughline"]
    sys.stdout.flush()
    sys.stderr.flush()
    arguments = [program, *module, "run", *named]
    os.execve(program, arguments, {**os.environ, **variables})  # noqa: S606
