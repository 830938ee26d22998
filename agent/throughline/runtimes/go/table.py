"""Layouts of the releases that they were read from, for binaries that do not tell them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from throughline.runtimes.go.buildinfo import BuildInfo
from throughline.runtimes.go.program import Program
from throughline.runtimes.go.wanted import GRPC, X_NET

PATH = Path(__file__).with_name("layouts.json")
GO = "go"
GENPROTO = "google.golang.org/genproto/googleapis/rpc"
_MODULES = (GRPC, X_NET, GENPROTO)  # of which the fields are that are no fields of Go's


def module(name: str) -> str:
    """The module in which a struct is declared, "go" for the standard library."""
    return next((m for m in _MODULES if name.startswith((f"{m}/", f"{m}."))), GO)


def versions(info: BuildInfo | Program) -> dict[str, str]:
    """The versions by which the table is asked."""
    found = {name: info.modules[name] for name in _MODULES if name in info.modules}
    # one module before it was split
    found.setdefault(GENPROTO, info.modules.get("google.golang.org/genproto", ""))
    return {GO: info.version, **found}


def offset(name: str, info: BuildInfo) -> int | None:
    """The offset of a field in the very versions of a program; None: not known."""
    where = module(name)
    return _table().get(where, {}).get(versions(info).get(where, ""), {}).get(name)


@cache
def _table() -> Mapping[str, Mapping[str, Mapping[str, int]]]:
    """Module -> version -> field -> bytes."""
    if not PATH.exists():
        return {}
    table: Mapping[str, Mapping[str, Mapping[str, int]]] = json.loads(PATH.read_text())
    return table
