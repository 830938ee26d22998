"""layouts.json: offsets by release, for programs that do not contain them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from throughline.runtimes.go.buildinfo import BuildInfo
from throughline.runtimes.go.program import Program
from throughline.runtimes.go.releases import GRPC, X_NET

PATH = Path(__file__).with_name("layouts.json")
GO = "go"
GENPROTO = "google.golang.org/genproto/googleapis/rpc"
_MODULES = (GRPC, X_NET, GENPROTO)  # the modules whose fields are wanted, beside Go's own


def module(name: str) -> str:
    """The module that declares a struct; "go" for the standard library."""
    return next((m for m in _MODULES if name.startswith((f"{m}/", f"{m}."))), GO)


def versions(info: BuildInfo | Program) -> dict[str, str]:
    """Module -> version, as the keys of the table."""
    found = {name: info.modules[name] for name in _MODULES if name in info.modules}
    # It was part of another module before that was split.
    found.setdefault(GENPROTO, info.modules.get("google.golang.org/genproto", ""))
    return {GO: info.version, **found}


def offset(name: str, info: BuildInfo) -> int | None:
    """The offset of a field in the versions of a program; None where the table does not have it."""
    where = module(name)
    return _table().get(where, {}).get(versions(info).get(where, ""), {}).get(name)


@cache
def _table() -> Mapping[str, Mapping[str, Mapping[str, int]]]:
    """Module -> version -> field -> bytes."""
    if not PATH.exists():
        return {}
    table: Mapping[str, Mapping[str, Mapping[str, int]]] = json.loads(PATH.read_text())
    return table
