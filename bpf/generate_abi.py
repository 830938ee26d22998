"""Writes `abi.py` from the BTF of a compiled object: the C header stays the one source.

    python bpf/generate_abi.py build/bpf-x86_64/observe.bpf.o agent/throughline/bpf/abi.py [--check]

`make bpf` runs it; it needs bpftool. `--check` writes nothing and exits 1 when the file differs.
"""

from __future__ import annotations

import json
import re
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

_STRUCTS = (
    "tl_config",
    "tl_settings",
    "tl_span",
    "tl_duration_key",
    "tl_duration",
    "tl_request",
    "tl_go_binary",
    "tl_go_start_key",
    "tl_runtime",
    "tl_java_binary",
    "tl_python_binary",
    "tl_proxy_binary",
    "tl_program",
    "tl_lasting",
    "tl_trust",
)
_ENUMS = (
    "tl_abi",
    "tl_kind",
    "tl_evidence",
    "tl_end",
    "tl_span_flags",
    "tl_method",
    "tl_sampler",
    "tl_counter",
    "tl_go",
    "tl_go_start",
    "tl_go_writes",
    "tl_request_flags",
    "tl_runtime_kind",
    "tl_jobs",
    "tl_java",
    "tl_parents",
    "tl_cgroup_flags",
    "tl_program_kind",
    "tl_runtime_flags",
    "tl_seen",
    "tl_found",
)
_INTEGERS = {1: "B", 2: "H", 4: "I", 8: "Q"}


def _format(types: dict[int, dict[str, Any]], type_id: int) -> str:
    """The `struct` format of one member: integers, and arrays of them (bytes as `Ns`)."""
    kind = types[type_id]
    while kind["kind"] in ("TYPEDEF", "CONST", "VOLATILE"):
        kind = types[kind["type_id"]]
    if kind["kind"] == "ARRAY":
        element = _format(types, kind["type_id"])
        return f"{kind['nr_elems']}{'s' if element == 'B' else element}"
    if kind["kind"] == "INT":
        return _INTEGERS[kind["size"]]
    raise SystemExit(f"generate_abi: {kind['kind']} cannot cross into Python")


def generate(path: Path) -> str:
    """The text of abi.py for the object at `path`."""
    command = ["bpftool", "--json", "btf", "dump", "file", str(path)]
    dump = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    types = {kind["id"]: kind for kind in dump["types"]}
    named = {(kind["kind"], kind["name"]): kind for kind in dump["types"]}
    lines = [
        '"""Generated from bpf/core/abi.h by generate_abi.py (`make bpf`): do not edit."""',
        "",
        "from enum import IntEnum",
        "from struct import Struct",
        "from typing import NamedTuple",
    ]
    for name in _ENUMS:
        lines += ["", "", *_enum(name, named["ENUM", name])]
    for name in _STRUCTS:
        lines += ["", "", *_struct(name, named["STRUCT", name], types)]
    return "\n".join(lines) + "\n"


def _enum(name: str, found: dict[str, Any]) -> list[str]:
    """The lines of one IntEnum. Members lose the prefix that they all share."""
    prefix = f"{name.upper()}_"
    if not all(value["name"].startswith(prefix) for value in found["values"]):
        prefix = "TL_"
    members = [
        f"    {value['name'].removeprefix(prefix)} = {value['val']}" for value in found["values"]
    ]
    return [f"class {_title(name)}(IntEnum):", *members]


def _struct(name: str, found: dict[str, Any], types: dict[int, dict[str, Any]]) -> list[str]:
    """The lines of one NamedTuple and its layout. Ends the program when C adds hidden padding."""
    layout, offset = "<", 0
    fields: list[tuple[str, str]] = []
    for member in found["members"]:
        if member["bits_offset"] != offset * 8:
            raise SystemExit(f"generate_abi: implicit padding before {name}.{member['name']}")
        code = _format(types, member["type_id"])
        element = types[member["type_id"]]
        size = struct.calcsize("<" + code)
        offset += size
        if member["name"].startswith("_pad"):
            layout += f"{size}x"
            continue
        layout += code
        kind = "bytes" if code.endswith("s") else "int"
        count = element["nr_elems"] if element["kind"] == "ARRAY" and kind == "int" else 1
        if count > 1:
            fields += [(f"{member['name']}_{i}", kind) for i in range(count)]
        else:
            fields.append((member["name"], kind))
    if offset != found["size"]:
        raise SystemExit(f"generate_abi: implicit padding at the end of {name}")
    return [
        f"class {_title(name)}(NamedTuple):",
        *(f"    {field}: {kind}" for field, kind in fields),
        "",
        "",
        f'{name.removeprefix("tl_").upper()} = Struct("{_counted(layout)}")',
    ]


def _title(name: str) -> str:
    """ "tl_span_flags" as "SpanFlags"."""
    return "".join(part.capitalize() for part in name.removeprefix("tl_").split("_"))


def _counted(layout: str) -> str:
    """ "QQQ16sB" as "3Q16sB"."""
    return re.sub(r"(?<![0-9])([BHIQ])\1+", lambda run: f"{len(run[0])}{run[1]}", layout)


def main(arguments: list[str]) -> int:
    text, target = generate(Path(arguments[0])), Path(arguments[1])
    if target.exists() and target.read_text() == text:
        return 0
    if "--check" in arguments:
        print(f"{target} differs from bpf/core/abi.h: run make bpf", file=sys.stderr)
        return 1
    target.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
