"""The command line. Only here an exception becomes an exit code, with a hint what to do next.

Exit codes:

- `run`: 0 stopped by a signal, 1 failed, 2 bad configuration, 3 not enough privileges or a required
  feature group cannot work.
- `status`: 0 healthy, 1 degraded, 3 not running.
- `doctor`: 0 every wanted group is on, 1 one is off, 2 bad configuration.
- `inspect`: 0 a Go program that is understood, 1 any other file.
- `detach`: 0 detached, 1 failed, 3 not enough privileges.
- `config`: 0 valid, 2 bad configuration.
- a wrong command line: 2.
"""

from __future__ import annotations

import argparse
import errno
import io
import os
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from throughline import __version__
from throughline.commands.output import hint
from throughline.config.model import DEFAULT_PATH, ConfigError, path_from_environment
from throughline.text import printable

FAILED, BAD_CONFIG, NOT_ALLOWED = 1, 2, 3


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal may not be one for UTF-8
            stream.reconfigure(errors="backslashreplace")
    options = parser().parse_args(arguments)
    try:
        return _command(options)(options)
    except ConfigError as error:
        for problem in error.problems:
            print(f"throughline: {printable(problem)}", file=sys.stderr)
        hint("see `throughline config show` for every key, its value and where it came from")
        return BAD_CONFIG
    except BrokenPipeError:
        # the reader of our output has gone (`throughline status | head`): nobody reads a message
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except OSError as error:
        print(f"throughline: {printable(_describe(error))}", file=sys.stderr)
        if error.errno in (errno.EPERM, errno.EACCES):
            hint("`throughline doctor` names the missing capability for each feature group")
            return NOT_ALLOWED
        hint("`throughline doctor` checks what this host lacks")
        return FAILED


def _command(options: argparse.Namespace) -> Callable[[argparse.Namespace], int]:
    """The function of a command, from its module, which no other command needs to load."""
    module, _, function = options.command.partition(".")
    found: Callable[[argparse.Namespace], int] = getattr(
        import_module(f"throughline.commands.{module}"), function
    )
    return found


def parser() -> argparse.ArgumentParser:
    """The parser of the command line; `command` of its result is MODULE.FUNCTION."""
    found = argparse.ArgumentParser(
        prog="throughline",
        description="Trace propagation and spans for unmodified services on this host.",
    )
    found.add_argument("--version", action="version", version=f"throughline {__version__}")
    commands = found.add_subparsers(required=True, metavar="COMMAND")

    file = argparse.ArgumentParser(add_help=False)
    file.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        default=path_from_environment(),
        help=f"default: $THROUGHLINE_CONFIG, else {DEFAULT_PATH} (may be missing)",
    )
    as_json = argparse.ArgumentParser(add_help=False)
    as_json.add_argument("--json", action="store_true", help="for programs")

    def add(group: Any, name: str, command: str, text: str, *parents: Any) -> Any:
        added = group.add_parser(name, help=text, description=text, parents=parents)
        added.set_defaults(command=command)
        return added

    add(commands, "run", "run.run", "run the agent until a signal stops it", file)
    add(commands, "doctor", "doctor.run", "say what works on this host, and why not", as_json, file)
    add(commands, "status", "status.run", "show what the running agent does", as_json, file)
    add(commands, "detach", "detach.run", "remove all programs and pins after a crash", file)
    text = "say what is traced in a Go binary"
    inspect = add(commands, "inspect", "inspect.run", text, as_json)
    inspect.add_argument("binary", metavar="BINARY")
    about = "check or show the configuration"
    config = commands.add_parser("config", help=about, description=about)
    configs = config.add_subparsers(required=True, metavar="COMMAND")
    check = add(configs, "check", "config.check", "check a file and the environment")
    check.add_argument("file", type=Path, metavar="FILE")
    add(configs, "show", "config.show", "every effective value and its source", as_json, file)
    return found


def _describe(error: OSError) -> str:
    where = f": {error.filename}" if error.filename else ""
    return f"{error.strerror or error}{where}"
