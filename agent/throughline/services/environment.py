"""The name that a service has in its environment, as an OpenTelemetry SDK in it would read it."""

from __future__ import annotations

import os
from pathlib import Path

from throughline.config.schema import pairs
from throughline.host import executed
from throughline.host.memory import Memory

_MAX_BYTES = 128 << 10
_MAX_NAME = 255
_START, _END = 50 - 3, 51 - 3  # fields of proc_pid_stat(5), counted behind the name
_NAME, _ATTRIBUTES = b"OTEL_SERVICE_NAME=", b"OTEL_RESOURCE_ATTRIBUTES="


def service_name(pid: int, *, proc: Path) -> str:
    """$OTEL_SERVICE_NAME of a process, else service.name of $OTEL_RESOURCE_ATTRIBUTES.

    "" without one; where the process may not be read, which takes CAP_SYS_PTRACE; and where the
    process has written its title over its environment. The variables are those that it was started
    with.
    """
    variables = _environment(pid, proc)
    for variable in variables:
        if variable.startswith(_NAME) and len(variable) > len(_NAME):
            return os.fsdecode(variable[len(_NAME) :][:_MAX_NAME])
    for variable in variables:
        if variable.startswith(_ATTRIBUTES):
            try:
                attributes = pairs(os.fsdecode(variable[len(_ATTRIBUTES) :]))
            except ValueError:  # an SDK takes nothing of it either
                return ""
            return attributes.get("service.name", "")[:_MAX_NAME]
    return ""


def _environment(pid: int, proc: Path) -> list[bytes]:
    try:
        fields = executed.stat(pid, proc=proc)
        start, end = int(fields[_START]), int(fields[_END])
        with Memory(pid, proc=proc) as memory:
            return memory.part(start, max(0, min(end - start, _MAX_BYTES))).split(b"\0")
    except (OSError, IndexError, ValueError):
        return []
