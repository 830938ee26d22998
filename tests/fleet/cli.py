"""The command line of the fleet: `python -m tests.fleet.hosts up|down|exec|run|list|clean`."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys

from tests.fleet import host, hosts


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.fleet.hosts", description=hosts.__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    commands = parser.add_subparsers(dest="command", required=True)
    for name, text in (
        ("up", "boot hosts NAME1 … and leave them running"),
        ("down", "end a fleet and remove everything of it"),
        ("exec", "run a command on a host over SSH, or a shell"),
        ("run", "run a command of this machine inside the fleet's network"),
        ("list", "show all fleets and their hosts"),
        ("clean", "remove what killed runs left behind (--name: this fleet in any case)"),
    ):
        command = commands.add_parser(name, help=text, description=text)
        default = None if name in ("list", "clean") else "demo"
        command.add_argument("--name", default=default, help="name of the fleet (%(default)s)")
        if name == "up":
            command.add_argument("--count", type=int, default=3, help="hosts (%(default)s)")
        if name == "exec":
            command.add_argument("host")
        if name in ("exec", "run"):
            command.add_argument("words", nargs=argparse.REMAINDER, metavar="COMMAND …")
    return parser


def _list() -> None:
    for name in hosts.names():
        try:
            fleet = hosts.load(name)
        except FileNotFoundError:
            print(f"{name}: killed before it was up (remove it with clean)")
            continue
        for one in fleet.hosts:
            try:
                state = f"running, init {host.leader(one)}"
            except ProcessLookupError:
                state = "not running"
            print(f"{one.name}\t{one.address}\t{one.address6}\t{state}")


def _run(arguments: argparse.Namespace) -> int:
    if arguments.command == "up":
        fleet = hosts.up(arguments.name, count=arguments.count, keep=True)
        print(f"inventory: {fleet.inventory}")
        print(f"ssh:       {' '.join(fleet.ssh)} {fleet.hosts[0].name}")
    elif arguments.command == "down":
        hosts.down(arguments.name)
    elif arguments.command == "list":
        _list()
    elif arguments.command == "clean":
        for name in [arguments.name] if arguments.name else hosts.orphans():
            hosts.say(f"removing fleet {name}")
            hosts.down(name)
    else:
        fleet = hosts.load(arguments.name)
        words = [word for word in arguments.words if word != "--"]
        if arguments.command == "exec":
            return subprocess.call([*fleet.ssh, arguments.host, *words])
        return subprocess.call([*fleet.inside, *(words or [os.environ.get("SHELL", "sh")])])
    return 0


def main() -> int:
    """Runs one command. Returns its exit code: 1 for an error that the user can correct."""
    try:
        return _run(_parser().parse_args())
    except (OSError, ValueError, RuntimeError, subprocess.CalledProcessError) as error:
        print(f"fleet: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
