"""Which processes of Ruby run a server that is known: by the title that the server gives itself.

Puma and Unicorn set the title of their processes before they listen. So it does not matter how they
were started: by their own command, by `rails server`, by a program of the user's. What an
application does with threads that it makes itself is its own.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Sequence

_RUBY = re.compile(r"ruby[-.\w]*")
_PUMA = re.compile(r"puma(: cluster worker \d+: \d+| \d+\.\d+\S* \()")
_UNICORN = re.compile(r"unicorn(_rails)? (master|worker\[\d+\])( |$)")


class Server(enum.Enum):
    """A server that is known."""

    PUMA = "its threads take requests over from each other"
    UNICORN = "each process serves one request after the other"


def server(executable: str, words: Sequence[str]) -> Server | None:
    """The server that a process runs.

    `executable`: the path of the file that it executes. `words`: what /proc/PID/cmdline shows,
    which is its title.
    """
    name = executable.removesuffix(" (deleted)").rpartition("/")[2]
    if not words or not _RUBY.fullmatch(name):
        return None
    if _PUMA.match(words[0]):
        return Server.PUMA
    return Server.UNICORN if _UNICORN.match(words[0]) else None
