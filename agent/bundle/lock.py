"""Pins the agent's Python dependencies: writes agent/bundle/requirements.lock.

    PYTHONPATH=agent .venv/bin/python -m bundle.lock

Resolves the dependencies of pyproject.toml once for each Python minor version that a bundle serves.
All must agree on the versions, since a bundle has one copy of the pure Python packages.
"""

from __future__ import annotations

import json
import subprocess
import sys
from importlib import metadata

from bundle.wheels import LOCK, PYTHON_MINORS, TARGET_OPTIONS

HEADER = """\
# The agent's Python dependencies, exact and with the SHA-256 of every wheel that the bundle uses.
# Written by: PYTHONPATH=agent .venv/bin/python -m bundle.lock
"""


def resolve(requirements: list[str], minor: int) -> dict[str, tuple[str, str]]:
    """Name to (version, SHA-256 of the wheel) for one minor version of Python 3 on Linux x86_64."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed"]
    command += [*TARGET_OPTIONS, "--python-version", f"3.{minor}", "--target", "unused"]
    output = subprocess.run(
        [*command, "--report", "-", *requirements], check=True, stdout=subprocess.PIPE
    ).stdout
    return {
        item["metadata"]["name"].lower().replace("_", "-"): (
            item["metadata"]["version"],
            item["download_info"]["archive_info"]["hashes"]["sha256"],
        )
        for item in json.loads(output)["install"]
    }


def project_requirements() -> list[str]:
    """The dependencies of pyproject.toml without the extras, from the installed package."""
    return [line for line in metadata.requires("throughline") or [] if "extra ==" not in line]


def main() -> int:
    requirements = project_requirements()
    versions: dict[str, str] = {}
    hashes: dict[str, set[str]] = {}
    for minor in PYTHON_MINORS:
        print(f"lock: Resolving for Python 3.{minor}")
        for name, (version, digest) in resolve(requirements, minor).items():
            if versions.setdefault(name, version) != version:
                print(f"lock: {name}: {versions[name]} and {version}", file=sys.stderr)
                return 1
            hashes.setdefault(name, set()).add(digest)
    lines = [
        f"{name}=={versions[name]}"
        + "".join(f" \\\n    --hash=sha256:{digest}" for digest in sorted(hashes[name]))
        for name in sorted(versions)
    ]
    LOCK.write_text(HEADER + "\n".join(lines) + "\n", encoding="utf-8")
    print(f"lock: {len(lines)} packages in {LOCK}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
