"""Runs the real ansible-playbook against a fleet."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from tests.fixtures.paths import CHECKOUT
from tests.fleet.hosts import Fleet

REPOSITORY = CHECKOUT
SERVICES = Path(__file__).with_name("services.yml")
CHECK = REPOSITORY / "playbooks" / "check.yml"
SITE = REPOSITORY / "playbooks" / "site.yml"
UPGRADE = REPOSITORY / "playbooks" / "upgrade.yml"
ROLLBACK = REPOSITORY / "playbooks" / "rollback.yml"
UNINSTALL = REPOSITORY / "playbooks" / "uninstall.yml"


class PlaybookError(Exception):
    """A playbook failed or could not be run; the message says which and why.

    `output` is all that it printed, where that was kept.
    """

    output = ""


def command(fleet: Fleet, file: Path, *options: str, **variables: object) -> list[str]:
    """The words that run a playbook on all hosts of a fleet, from REPOSITORY.

    Raises PlaybookError where it cannot be run.
    """
    beside = str(Path(sys.executable).parent)
    program = shutil.which("ansible-playbook", path=beside) or shutil.which("ansible-playbook")
    if program is None:
        raise PlaybookError("ansible-playbook is not installed: run make setup")
    if not file.exists():
        raise PlaybookError(f"{file} does not exist")
    return _words(program, fleet, str(file), *options, **variables)


def _words(program: str, fleet: Fleet, name: str, *options: str, **variables: object) -> list[str]:
    inventory = str(fleet.inventory)
    return [program, "-i", inventory, name, "-e", json.dumps(variables), *options]


def run_installed(fleet: Fleet, folder: Path, name: str, **variables: object) -> str:
    """Runs a playbook of the collection that is installed in `folder`/collections, from there.

    Returns its output. Raises PlaybookError.
    """
    program = str(Path(sys.executable).with_name("ansible-playbook"))
    return _run(
        _words(program, fleet, f"throughline.fleet.{name}", **variables),
        name,
        cwd=folder,
        env={**os.environ, "ANSIBLE_COLLECTIONS_PATH": str(folder / "collections")},
        quiet=True,
    )


def run(fleet: Fleet, file: Path, *options: str, quiet: bool = False, **variables: object) -> str:
    """Runs a playbook on all hosts of a fleet; `variables` are extra variables.

    Its output goes to the terminal, or with `quiet` is returned. Raises PlaybookError.
    """
    words = command(fleet, file, *options, **variables)
    return _run(words, file.name, cwd=REPOSITORY, env=None, quiet=quiet)


def _run(words: list[str], name: str, *, cwd: Path, env: dict[str, str] | None, quiet: bool) -> str:
    answer = subprocess.run(
        words,
        cwd=cwd,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE if quiet else None,
        stderr=subprocess.STDOUT if quiet else None,
        text=True,
    )
    if answer.returncode:
        end = "\n".join((answer.stdout or "").splitlines()[-40:])
        error = PlaybookError(f"{name} failed with exit code {answer.returncode}\n{end}".strip())
        error.output = answer.stdout or ""
        raise error
    return answer.stdout or ""
