"""The command line. Only here exceptions become exit codes, with a hint that says what to do.

Exit codes: `run` 0 stopped by a signal, 1 failed, 2 bad configuration, 3 not enough privileges or a
required feature group cannot work. `doctor` 0 every wanted group is on, 1 one is off, 2 bad
configuration. `status` 0 healthy, 1 degraded, 3 not running. `config` 0, 2 bad configuration.
`detach` 0, 1 failed, 3 not enough privileges. `inspect` 0 a Go program, 1 no such, or refused.
A wrong command line is 2.
"""

from __future__ import annotations

import argparse
import errno
import io
import json
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from throughline import __version__
from throughline.agent import status
from throughline.config import model as config
from throughline.text import Formatter, printable, to_json

log = logging.getLogger(__name__)

FAILED, BAD_CONFIG, NOT_ALLOWED = 1, 2, 3


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal may not be one for UTF-8
            stream.reconfigure(errors="backslashreplace")
    options = _parser().parse_args(arguments)
    try:
        code: int = options.command(options)
    except config.ConfigError as error:
        for problem in error.problems:
            print(f"throughline: {printable(problem)}", file=sys.stderr)
        _hint("see `throughline config show` for every key, its value and where it came from")
        return BAD_CONFIG
    except BrokenPipeError:
        # The reader of our output has gone (`throughline status | head`); nobody is left to tell.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except OSError as error:
        print(f"throughline: {printable(_describe(error))}", file=sys.stderr)
        if error.errno in (errno.EPERM, errno.EACCES):
            _hint("`throughline doctor` names the missing capability for each feature group")
            return NOT_ALLOWED
        _hint("`throughline doctor` checks what this host lacks")
        return FAILED
    return code


def _run(options: argparse.Namespace) -> int:
    from throughline.agent import agent

    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Formatter("%(levelname)s %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    config = _load(options)
    try:
        return agent.run(config)
    except Exception as error:
        # Status 3 keeps the unit down (RestartPreventExitStatus): it is for what `run` returns, not
        # for an error that somebody else on this host may have caused, at whatever moment.
        log.exception("the agent failed: %s", error)
        return FAILED


def _detach(options: argparse.Namespace) -> int:
    from throughline.commands import detach as earlier

    earlier.detach(_load(options).agent.bpffs)
    return 0


def _doctor(options: argparse.Namespace) -> int:
    from throughline.commands import doctor

    report = doctor.report(_load(options))
    print(_json(report) if options.json else doctor.format_text(report))
    groups = report["groups"].values()
    return FAILED if any(g["wanted"] and g["state"] != "on" for g in groups) else 0


def _status(options: argparse.Namespace) -> int:
    try:
        path = _load(options).agent.status_path
    except config.ConfigError as error:
        # The agent may well run on the configuration it was started with.
        path = config.default_status_path()
        problem = printable(error.problems[0])
        print(f"throughline: {problem}; looking at {path}", file=sys.stderr)
    found = status.read(path)
    if found is None:
        if options.json:
            print("null")
        else:
            print(f"throughline is not running (no fresh {path})")
            _hint("systemctl status throughline.service; journalctl -u throughline.service")
    else:
        print(_json(found) if options.json else status.format_text(found))
    return status.exit_code(found)


def _inspect(options: argparse.Namespace) -> int:
    from throughline.commands import inspect as report

    found = report.inspect(options.binary)
    print(_json(found) if options.json else report.format_text(found))
    return FAILED if found["refused"] else 0


def _config_check(options: argparse.Namespace) -> int:
    config.load(options.file, must_exist=True)
    print(f"{printable(str(options.file))}: valid")
    return 0


def _config_show(options: argparse.Namespace) -> int:
    effective = _load(options).effective
    if options.json:
        print(_json({e.key: {"value": e.value, "source": e.source} for e in effective}))
        return 0
    width = max(len(e.key) for e in effective)
    values = [_shown(e.value) for e in effective]
    value_width = min(60, max(len(value) for value in values))
    for e, value in zip(effective, values, strict=True):
        print(printable(f"{e.key:<{width}}  {value:<{value_width}}  {e.source}"))
    return 0


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _load(options: argparse.Namespace) -> config.Config:
    return config.load(options.config or config.path_from_environment())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="throughline",
        description="Trace propagation and spans for unmodified services on this host.",
    )
    parser.add_argument("--version", action="version", version=f"throughline {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    file = argparse.ArgumentParser(add_help=False)
    file.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help=f"default: $THROUGHLINE_CONFIG, else {config.DEFAULT_PATH} (may be missing)",
    )
    as_json = argparse.ArgumentParser(add_help=False)
    as_json.add_argument("--json", action="store_true", help="for programs")

    def add(group: Any, name: str, command: Any, text: str, *parents: Any) -> Any:
        found = group.add_parser(name, help=text, description=text, parents=parents)
        found.set_defaults(command=command)
        return found

    add(commands, "run", _run, "run the agent until a signal stops it", file)
    add(commands, "doctor", _doctor, "say what works on this host, and why not", as_json, file)
    add(commands, "status", _status, "show what the running agent does", as_json, file)
    add(commands, "detach", _detach, "remove all programs and pins after a crash", file)
    inspect = add(commands, "inspect", _inspect, "say what is traced in a Go binary", as_json)
    inspect.add_argument("binary", metavar="BINARY")
    about = "check or show the configuration"
    of_config = commands.add_parser("config", help=about, description=about)
    configs = of_config.add_subparsers(required=True, metavar="COMMAND")
    check = add(configs, "check", _config_check, "check a file and the environment")
    check.add_argument("file", type=Path, metavar="FILE")
    add(configs, "show", _config_show, "every effective value and its source", as_json, file)
    return parser


def _json(value: object) -> str:
    return json.dumps(json.loads(to_json(value)), indent=2)


def _describe(error: OSError) -> str:
    where = f": {error.filename}" if error.filename else ""
    return f"{error.strerror or error}{where}"


def _hint(text: str) -> None:
    print(f"hint: {text}", file=sys.stderr)
