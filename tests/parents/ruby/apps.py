"""Ruby: Puma's threads."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tests.parents.app import App, Behaviour, Place, Process
from tests.parents.debian import installs_all

_FOLDER = Path(__file__).parent
_PACKAGES = ("puma", "ruby-concurrent", "ruby-connection-pool", "ruby-redis", "ruby-sinatra")


def _start(place: Place) -> Sequence[Process]:
    bind = f"tcp://127.0.0.1:{place.port}"
    command = ["puma", "--bind", bind, "--environment", "production", str(_FOLDER / "config.ru")]
    return [Process(command)]


APPS = (
    App(
        name="sinatra",
        runtime="Ruby",
        title="Sinatra on Puma, Net::HTTP",
        start=_start,
        behaviours=tuple(Behaviour),
        install=installs_all(*_PACKAGES),
    ),
)
