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
ANSIBLE = "THROUGHLINE_TEST_ANSIBLE"
COLLECTION = "THROUGHLINE_TEST_COLLECTION"


class PlaybookError(Exception):
    """A playbook failed or could not be run; the message says which and why.

    `output` is all that it printed, where that was kept.
    """

    output = ""


def _program() -> str:
    """ansible-playbook: of $THROUGHLINE_TEST_ANSIBLE, else beside this Python, else on PATH."""
    beside = os.environ.get(ANSIBLE) or str(Path(sys.executable).parent)
    program = shutil.which("ansible-playbook", path=beside) or shutil.which("ansible-playbook")
    if program is None:
        raise PlaybookError("ansible-playbook is not installed: run make setup")
    return program


def _words(fleet: Fleet, name: str, *options: str, **variables: object) -> list[str]:
    inventory = str(fleet.inventory)
    return [_program(), "-i", inventory, name, "-e", json.dumps(variables), *options]


def command(fleet: Fleet, file: Path, *options: str, **variables: object) -> list[str]:
    """The words that run a playbook on all hosts of a fleet, from REPOSITORY.

    Raises PlaybookError where it cannot be run.
    """
    if not file.exists():
        raise PlaybookError(f"{file} does not exist")
    return _words(fleet, str(file), *options, **variables)


def run_installed(
    fleet: Fleet, folder: Path, name: str, *options: str, quiet: bool = True, **variables: object
) -> str:
    """Runs a playbook of the collection that is installed in `folder`/collections, from there.

    Its output goes to the terminal, or with `quiet` is returned. Raises PlaybookError.
    """
    words = _words(fleet, f"throughline.fleet.{name}", *options, **variables)
    env = {**os.environ, "ANSIBLE_COLLECTIONS_PATH": str(folder / "collections")}
    return _run(words, name, cwd=folder, env=env, quiet=quiet)


def run(fleet: Fleet, file: Path, *options: str, quiet: bool = False, **variables: object) -> str:
    """Runs a playbook on all hosts of a fleet; `variables` are extra variables.

    Its output goes to the terminal, or with `quiet` is returned. Raises PlaybookError. With
    $THROUGHLINE_TEST_COLLECTION it is the one of the collection that is installed there.
    """
    installed = os.environ.get(COLLECTION)
    if installed and file.parent == SITE.parent:
        folder = Path(installed)
        return run_installed(fleet, folder, file.stem, *options, quiet=quiet, **variables)
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
