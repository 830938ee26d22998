"""PHP-FPM behind nginx, on a Unix socket."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tests.parents.app import App, Behaviour, Place, Process
from tests.parents.debian import installs_all

_FOLDER = Path(__file__).parent
_VERSION = "8.2"
_PACKAGES = [f"php{_VERSION}-{name}" for name in ("fpm", "curl", "redis")]


def _start(place: Place) -> Sequence[Process]:
    socket = place.folder / "fpm.sock"
    for name in ("nginx.conf", "fpm.conf"):
        text = (_FOLDER / name).read_text(encoding="utf-8")
        filled = text.format(port=place.port, folder=place.folder, socket=socket)
        (place.folder / name).write_text(filled, encoding="utf-8")
    program = place.folder / "index.php"
    program.write_bytes((_FOLDER / program.name).read_bytes())
    nginx = ["nginx", "-p", str(place.folder), "-c", str(place.folder / "nginx.conf")]
    fpm = [f"php-fpm{_VERSION}", "--nodaemonize", "--fpm-config", str(place.folder / "fpm.conf")]
    return [Process(nginx, name="nginx"), Process(fpm, name="fpm", listens=socket)]


APPS = (
    App(
        name="php-fpm",
        runtime="PHP",
        title="nginx, PHP-FPM by Unix socket, curl",
        start=_start,
        behaviours=(
            Behaviour.AT_ONCE,
            Behaviour.SLEEP,
            Behaviour.DATABASE,
            Behaviour.TWO,
            Behaviour.AFTER,
            Behaviour.BODY,
        ),
        install=installs_all(*_PACKAGES),
    ),
)
