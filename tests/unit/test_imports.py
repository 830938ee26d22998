"""Imports run one way between the folders, as docs/developer/architecture.md draws them."""

from __future__ import annotations

import ast
from pathlib import Path

import throughline
from tests.fixtures.folders import stage

PACKAGE = Path(throughline.__file__).parent

# Each foreign library behind one place. OTLP messages stand where they are built or read.
FOREIGN = {
    "ctypes": ("bpf/", "host/", "probes/uprobes.py"),
    "yaml": ("config/reader.py",),
    "requests": ("export/otlp_http.py",),
    "urllib3": ("export/otlp_http.py",),
    "grpc": ("export/otlp_grpc.py",),
    "google.rpc": ("export/otlp_grpc.py",),
    "opentelemetry": ("export/", "telemetry/"),
    "opentelemetry.proto.trace": (
        "telemetry/spans.py",
        "export/templates.py",
        "export/encoding.py",
    ),
    "opentelemetry.proto.metrics": ("telemetry/metrics.py",),
    "opentelemetry.proto.collector": ("telemetry/metrics.py", "export/answers.py"),
    # Only tests use these: the bundle has neither.
    "opentelemetry.sdk": (),
    "opentelemetry.exporter": (),
    "jinja2": (),
}


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def imported(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names.add(node.module or "")
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return names


def part(path: Path) -> str:
    first = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    return "throughline" if first == "__init__" else first


def test_imports_run_one_way() -> None:
    known = {part(path) for path in modules()}
    for path in modules():
        for name in imported(path):
            parts = name.split(".")
            if parts[0] == "throughline" and len(parts) > 1 and parts[1] in known:
                assert stage(parts[1]) <= stage(part(path)), f"{path.name} imports {name}"


def test_each_foreign_library_stays_behind_one_place() -> None:
    for path in modules():
        place = path.relative_to(PACKAGE).as_posix()
        for name in imported(path):
            for library, places in FOREIGN.items():
                if name == library or name.startswith(f"{library}."):
                    assert place.startswith(places), f"{place} imports {name}"


def test_modules_stay_small() -> None:
    """About 350 lines is the rule; a fifth above it is the end."""
    for path in modules():
        lines = len(path.read_text(encoding="utf-8").splitlines())
        assert lines <= 430 or "enerated" in path.read_text()[:400], f"{path}: {lines} lines"
