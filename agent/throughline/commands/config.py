"""`throughline config check` and `throughline config show`."""

from __future__ import annotations

import argparse
import json
from typing import Any

from throughline.commands.output import print_json, table, text
from throughline.config.model import load
from throughline.text import printable

_WIDEST_VALUE = 60  # characters: a longer value does not move the sources of the others


def check(options: argparse.Namespace) -> int:
    """Checks a file and the environment. Raises ConfigError."""
    load(options.file, must_exist=True)
    print(f"{printable(str(options.file))}: valid")
    return 0


def show(options: argparse.Namespace) -> int:
    """Prints every effective value and its source."""
    effective = load(options.config).effective
    if options.json:
        print_json({e.key: {"value": e.value, "source": e.source} for e in effective})
    else:
        rows = ((e.key, shown(e.value), e.source) for e in effective)
        print(text(table(rows, widest=_WIDEST_VALUE)))
    return 0


def shown(value: Any) -> str:
    """A value as `config show` prints it, and as the pages write it."""
    return value if isinstance(value, str) else json.dumps(value)
