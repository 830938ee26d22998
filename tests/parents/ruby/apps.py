"""Ruby: threads of Puma, processes of Unicorn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from tests.fixtures import debian_root, nginx
from tests.parents import apache
from tests.parents.app import SERVICE, App, Behaviour, Place, Process
from tests.parents.debian import installs_all
from tests.parents.ruby import releases

_FOLDER = Path(__file__).parent
_PACKAGES = ("puma", "ruby-concurrent", "ruby-connection-pool", "ruby-redis", "ruby-sinatra")
_INSTALL = installs_all(*_PACKAGES)
_RAILS = (*_PACKAGES, "ruby-railties")
_EVERY = tuple(Behaviour)
_PROCESSES = tuple(one for one in SERVICE if one is not Behaviour.AFTER)
_KEPT = 'proxy_http_version 1.1; proxy_set_header Connection "";'
_CLUSTER = ("--workers", "2", "--preload")

Start = Callable[[Place], Sequence[Process]]


def _puma(
    *words: str, release: str = "", app: str = "config.ru", title: str = "puma"
) -> Callable[[Place, str], Process]:
    """Puma: the installed one, or one of another Debian release. `words` are its own."""

    def start(place: Place, bind: str) -> Process:
        options = ("--bind", bind, "--environment", "production", *words)
        if release:
            command = releases.command(release, "puma", *options, f"{releases.LIBRARY}/{app}")
        else:
            command = ["puma", *options, str(_FOLDER / app)]
        return Process(command, name=title, environment={"FOLDER": str(place.folder)})

    return start


def _alone(*words: str, release: str = "", app: str = "config.ru") -> Start:
    """Puma on a port."""
    start = _puma(*words, release=release, app=app, title="")
    return lambda place: [start(place, f"tcp://127.0.0.1:{place.port}")]


def _behind_nginx(start_behind: Callable[[Place, str], Process], *, kept: bool = False) -> Start:
    """nginx, and a server behind a Unix socket: one of its own, or app.socket.

    `kept`: nginx keeps the connections.
    """

    def start(place: Place) -> Sequence[Process]:
        socket: Path | int = place.folder / "app.socket"
        behind = start_behind(place, f"unix://{socket}")
        socket = behind.listens or socket
        location = f"location / {{ {_KEPT if kept else ''} proxy_pass http://app; }}"
        server = f"server {{ listen 127.0.0.1:{place.port} backlog=512; {location} }}"
        upstream = f"upstream app {{ server unix:{socket}; {'keepalive 16;' if kept else ''} }}"
        front = Process(nginx.prepare(place.folder, f"{upstream} {server}"), name="nginx")
        return [front, replace(behind, listens=socket)]

    return start


def _unicorn(place: Place, listen: str, name: str = "unicorn") -> Process:
    inner = f"{releases.LIBRARY}/unicorn-{place.port}.rb"
    file = releases.directory("unicorn") / inner.lstrip("/")
    file.write_text(f"listen '{listen}', backlog: 512\nworker_processes 4\n")
    words = ["unicorn", "--config-file", inner, "--env", "production"]
    words.append(f"{releases.LIBRARY}/config.ru")
    return Process(releases.command("unicorn", *words), name=name)


def _unicorn_behind(place: Place, _: str) -> Process:
    """It listens on a Unix socket in its root."""
    inner = f"{releases.LIBRARY}/{place.port}.socket"
    listens = releases.directory("unicorn") / inner.lstrip("/")
    return replace(_unicorn(place, inner), listens=listens)


_PASSENGER = """\
PassengerRoot /usr/lib/ruby/vendor_ruby/phusion_passenger/locations.ini
PassengerRuby /usr/bin/ruby
PassengerUserSwitching off
PassengerDefaultUser nobody
PassengerMaxPoolSize 8
PassengerInstanceRegistryDir /tmp
PassengerAppRoot {library}
PassengerAppEnv production
PassengerDisableSecurityUpdateCheck on
PassengerDisableAnonymousTelemetry on
DocumentRoot {library}/public
{variables}
"""


def _passenger(place: Place) -> Sequence[Process]:
    """Apache with Passenger, which starts the application."""
    root = releases.directory("passenger")
    inner = root / releases.LIBRARY.lstrip("/")
    (inner / "public").mkdir(exist_ok=True)
    # its packages are not configured
    (root / "etc/passwd").write_text("root:x:0:0::/:/bin/sh\nnobody:x:65534:65534::/:/bin/sh\n")
    (root / "etc/group").write_text("root:x:0:\nnogroup:x:65534:\n")
    (root / "tmp").chmod(0o1777)
    if not (root / "bin/sh").is_symlink():
        (root / "bin/sh").symlink_to("dash")
    variables = {**place.environment, "FOLDER": releases.LIBRARY}
    name = f"apache-{place.port}"
    more = _PASSENGER.format(
        library=releases.LIBRARY,
        variables="\n".join(f'SetEnv {key} "{value}"' for key, value in variables.items()),
    )
    (inner / f"{name}.conf").write_text(
        apache.configuration(
            releases.LIBRARY, place.port, ("mpm_event", "env", "passenger"), more, name=name
        )
    )
    words = ["-D", "FOREGROUND", "-f", f"{releases.LIBRARY}/{name}.conf"]
    # it reads the environment of process 1
    return [Process(debian_root.alone(root, ["apache2", *words]))]


def _app(
    name: str,
    title: str,
    start: Start,
    behaviours: Sequence[Behaviour] = SERVICE,
    install: Callable[[], None] = _INSTALL,
) -> App:
    return App(
        name=name,
        runtime="Ruby",
        title=title,
        start=start,
        behaviours=behaviours,
        install=install,
        follows="ruby",
    )


def released(number: str) -> App:
    """Sinatra on a release of Puma that another Debian release has."""
    return _app(
        f"puma-{number}",
        f"Sinatra on Puma {number}, Net::HTTP",
        _alone(release=number),
        _EVERY,
        releases.installs(number),
    )


def released_behind_nginx(number: str) -> App:
    """The same behind nginx, by a Unix socket in its root."""

    def behind(place: Place, _: str) -> Process:
        inner = f"{releases.LIBRARY}/{place.port}.socket"
        listens = releases.directory(number) / inner.lstrip("/")
        process = _puma(release=number)(place, f"unix://{inner}?umask=0111&backlog=512")
        return replace(process, listens=listens)

    title = f"nginx that keeps connections, Puma {number} behind a Unix socket, Net::HTTP"
    start = _behind_nginx(behind, kept=True)
    return _app(f"nginx-puma-{number}", title, start, _EVERY, releases.installs(number))


APPS = (
    _app("sinatra", "Sinatra on Puma 5.6.5, Net::HTTP", _alone(), _EVERY),
    released("6.6"),
    released("8.0"),
    _app("puma-cluster", "Sinatra on Puma with forked workers, Net::HTTP", _alone(*_CLUSTER)),
    _app(
        "rails",
        "Rails API on Puma, Net::HTTP",
        _alone(app="rails.ru"),
        _PROCESSES,
        installs_all(*_RAILS),
    ),
    _app(
        "rails-cluster",
        "Rails API on Puma with forked workers, Net::HTTP",
        _alone(*_CLUSTER, app="rails.ru"),
        _PROCESSES,
        installs_all(*_RAILS),
    ),
    _app("nginx-puma", "nginx, Puma behind a Unix socket, Net::HTTP", _behind_nginx(_puma())),
    _app(
        "nginx-puma-kept",
        "nginx that keeps connections, Puma behind a Unix socket, Net::HTTP",
        _behind_nginx(_puma(), kept=True),
    ),
    _app(
        "unicorn",
        "Sinatra on Unicorn, Net::HTTP",
        lambda place: [_unicorn(place, f"127.0.0.1:{place.port}", "")],
        _PROCESSES,
        releases.installs("unicorn"),
    ),
    # Passenger hands requests over in a protocol of its own: its calls have no parent. It starts
    # the application with the first request: there is nothing to follow before.
    replace(
        _app(
            "passenger",
            "Sinatra on Passenger in Apache, Net::HTTP",
            _passenger,
            (Behaviour.AT_ONCE, Behaviour.SLEEP, Behaviour.BODY),
            releases.installs("passenger"),
        ),
        follows="",
    ),
    _app(
        "nginx-unicorn",
        "nginx, Unicorn behind a Unix socket, Net::HTTP",
        _behind_nginx(_unicorn_behind),
        _PROCESSES,
        releases.installs("unicorn"),
    ),
)
