"""Proxies in front of the backend, and in front of an application behind a Unix socket."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from tests.fixtures import nginx
from tests.parents import apache
from tests.parents.app import PROXY, SERVICE, App, Behaviour, Place, Process
from tests.parents.debian import installs
from tests.parents.python import environment as python

Start = Callable[[Place], Sequence[Process]]
_KEPT = 'proxy_http_version 1.1; proxy_set_header Connection ""; proxy_pass http://kept;'


def _nginx(location: str, http: str = "") -> Start:
    """nginx with two workers; `location` is what is in the block for all paths."""

    def start(place: Place) -> Sequence[Process]:
        upstream = f"upstream kept {{ server 127.0.0.1:{place.backend}; keepalive 16; }}"
        listen = f"listen 127.0.0.1:{place.port} backlog=512;"
        socket = place.folder / "app.socket"
        inner = location.format(backend=f"127.0.0.1:{place.backend}", socket=socket)
        server = f"server {{ {listen} location / {{ {inner} }} }}"
        return [Process(nginx.prepare(place.folder, "\n".join((http, upstream, server))))]

    return start


_HAPROXY = """\
global
    nbthread 2
    maxconn 512
defaults
    mode http
    timeout connect 10s
    timeout client 30s
    timeout server 30s
    {option}
frontend front
    bind 127.0.0.1:{port}
    default_backend back
backend back
    server only {to}
"""


def _to(place: Place, upstream: str) -> str:
    """Fills in the backend's port, or the socket of an application behind the proxy."""
    return upstream.format(backend=place.backend, socket=place.folder / "app.socket")


def _haproxy(option: str, to: str = "127.0.0.1:{backend}") -> Start:
    def start(place: Place) -> Sequence[Process]:
        file = place.folder / "haproxy.cfg"
        file.write_text(_HAPROXY.format(option=option, port=place.port, to=_to(place, to)))
        return [Process(["haproxy", "-db", "-f", str(file)])]

    return start


def _apache(worker: str, to: str = "http://127.0.0.1:{backend}/") -> Start:
    modules = (f"mpm_{worker}", "proxy", "proxy_http")

    def start(place: Place) -> Sequence[Process]:
        file = place.folder / "apache.conf"
        more = f"ProxyPass / {_to(place, to)}"
        file.write_text(apache.configuration(place.folder, place.port, modules, more))
        return [Process(["apache2", "-D", "FOREGROUND", "-f", str(file)])]

    return start


def _caddy(place: Place) -> Sequence[Process]:
    file = place.folder / "Caddyfile"
    file.write_text(
        "{\n admin off\n auto_https off\n}\n"
        f"http://:{place.port} {{\n bind 127.0.0.1\n"
        f" reverse_proxy 127.0.0.1:{place.backend}\n}}\n"
    )
    words = ["caddy", "run", "--adapter", "caddyfile", "--config", str(file)]
    return [Process(words, environment={"HOME": str(place.folder)})]


_LIGHTTPD = """\
server.modules = ("mod_proxy")
server.document-root = "{folder}"
server.bind = "127.0.0.1"
server.port = {port}
server.max-keep-alive-requests = 100000
proxy.server = ("" => (({to})))
"""


def _lighttpd(to: str = '"host" => "127.0.0.1", "port" => {backend}') -> Start:
    def start(place: Place) -> Sequence[Process]:
        file = place.folder / "lighttpd.conf"
        file.write_text(_LIGHTTPD.format(folder=place.folder, port=place.port, to=_to(place, to)))
        return [Process(["lighttpd", "-D", "-f", str(file)])]

    return start


def _varnish(place: Place) -> Sequence[Process]:
    """Nothing is taken from its cache: each request is passed on."""
    file = place.folder / "default.vcl"
    file.write_text(
        f'vcl 4.1; backend only {{ .host = "127.0.0.1"; .port = "{place.backend}"; }}'
        " sub vcl_recv { return (pass); }"
    )
    listen = ("-a", f"127.0.0.1:{place.port}", "-n", str(place.folder / "varnish"))
    return [Process(["varnishd", "-F", *listen, "-f", str(file), "-s", "malloc,16m"])]


_SQUID = """\
http_port 127.0.0.1:{port} accel defaultsite=127.0.0.1
cache_peer 127.0.0.1 parent {backend} 0 no-query originserver
http_access allow all
cache deny all
cache_mem 8 MB
access_log none
cache_log {folder}/squid.log
pid_filename none
coredump_dir {folder}
shutdown_lifetime 0 seconds
"""


def _squid(place: Place) -> Sequence[Process]:
    file = place.folder / "squid.conf"
    words = {"port": place.port, "backend": place.backend, "folder": place.folder}
    file.write_text(_SQUID.format(**words))
    return [Process(["squid", "--foreground", "-f", str(file)])]


def _app(
    name: str, title: str, start: Start, command: str, package: str, *, follows: str = ""
) -> App:
    return App(
        name=name,
        runtime="Proxies",
        title=title,
        start=start,
        behaviours=PROXY,
        install=installs(command, package),
        follows=follows,
    )


def _of_nginx(name: str, title: str, start: Start) -> App:
    return _app(name, title, start, "nginx", "nginx-light", follows="proxies")


def _of_haproxy(name: str, title: str, option: str) -> App:
    return _app(name, title, _haproxy(option), "haproxy", "haproxy", follows="proxies")


def _behind_nginx(*words: str, kept: bool = False, **variables: str) -> Start:
    """nginx, and behind a Unix socket a Python server.

    `words` are behind `python`; they and the values of the variables have {socket} in them.
    """

    def start(place: Place) -> Sequence[Process]:
        socket = place.folder / "app.socket"
        inner = _KEPT if kept else "proxy_pass http://kept;"
        upstream = f"upstream kept {{ server unix:{socket}; {'keepalive 16;' if kept else ''} }}"
        listen = f"listen 127.0.0.1:{place.port} backlog=512;"
        server = f"{upstream} server {{ {listen} location / {{ {inner} }} }}"
        command = [python.python(), *(word.format(socket=socket) for word in words)]
        named = {name: value.format(socket=socket) for name, value in variables.items()}
        return [
            Process(nginx.prepare(place.folder / "nginx", server), "nginx"),
            Process(command, "app", {**python.environment(), **named}, listens=socket),
        ]

    return start


def _behind(front: Start, *command: str, **variables: str) -> Start:
    """A proxy, and behind the socket that it names a server, whose words have {socket} in them."""

    def start(place: Place) -> Sequence[Process]:
        socket = place.folder / "app.socket"
        (proxy,) = front(place)
        words = [word.format(socket=socket) for word in command]
        return [
            replace(proxy, name="front"),
            Process(words, "app", variables, listens=socket),
        ]

    return start


def _uvicorn_behind(front: Start) -> Start:
    def start(place: Place) -> Sequence[Process]:
        words = ("-m", "uvicorn", "--uds", "{socket}", "--log-level", "warning", "asgi:app")
        return _behind(front, python.python(), *words, **python.environment())(place)

    return start


def _uwsgi(place: Place) -> Sequence[Process]:
    uwsgi = str(python.directory() / "bin/uwsgi")
    listen = ("--http-socket", "{socket}", "--chmod-socket=666", "--master", "--die-on-term")
    # it closes each connection after the answer, and does not say so by itself
    more = ("--add-header", "Connection: close", "--processes", "2", "--threads", "8")
    words = (uwsgi, *listen, *more, "--module", "wsgi:app")
    return _behind(_TO_SOCKET, python.python(), *words, **python.environment())(place)


def _both(place: Place) -> Sequence[Process]:
    """nginx that is asked by TCP and by a Unix socket in turn, by another nginx."""
    socket = place.folder / "inner.socket"
    edge = (
        f"upstream inner {{ server unix:{socket}; server 127.0.0.1:{place.spare}; }}"
        f"server {{ listen 127.0.0.1:{place.port} backlog=512;"
        " location / { proxy_pass http://inner; } }"
    )
    inner = (
        f"server {{ listen unix:{socket}; listen 127.0.0.1:{place.spare} backlog=512;"
        f" location / {{ proxy_pass http://127.0.0.1:{place.backend}; }} }}"
    )
    return [
        Process(nginx.prepare(place.folder / "edge", edge), "edge"),
        Process(nginx.prepare(place.folder / "inner", inner), "inner", listens=socket),
    ]


def _gunicorn(worker: str, *more: str, app: str = "wsgi:app") -> Start:
    many = {"sync": ("--workers", "4"), "gthread": ("--threads", "32")}.get(worker, ())
    bind = ("--bind", "unix:{socket}", "--worker-class", worker)
    return _behind_nginx("-m", "gunicorn", *bind, *many, *more, app)


def _uvicorn(*more: str, kept: bool = False) -> Start:
    words = ("-m", "uvicorn", "--uds", "{socket}", "--log-level", "warning", *more, "asgi:app")
    return _behind_nginx(*words, kept=kept)


_TO_SOCKET = _nginx("proxy_pass http://unix:{socket}:;")
_CALLS = (
    Behaviour.AT_ONCE,
    Behaviour.SLEEP,
    Behaviour.DATABASE,
    Behaviour.TWO,
    Behaviour.BODY,
)


def _unix(name: str, title: str, start: Start, behaviours: Sequence[Behaviour] = _CALLS) -> App:
    return App(
        name=name,
        runtime="Unix sockets",
        title=title,
        start=start,
        behaviours=behaviours,
        install=python.install,
        follows="python",
    )


APPS = (
    _of_nginx("nginx", "nginx", _nginx("proxy_pass http://{backend};")),
    _of_nginx("nginx-keepalive", "nginx, upstream keep-alive", _nginx(_KEPT)),
    _of_nginx(
        "nginx-unbuffered",
        "nginx, `proxy_request_buffering off`",
        _nginx(_KEPT + " proxy_request_buffering off;"),
    ),
    _of_nginx(
        "nginx-limit",
        "nginx, `limit_req`",
        _nginx(
            _KEPT + " limit_req zone=slow burst=1000;",
            "limit_req_zone $server_port zone=slow:1m rate=150r/s;",
        ),
    ),
    _of_haproxy("haproxy", "HAProxy", ""),
    _of_haproxy("haproxy-close", "HAProxy, `http-server-close`", "option http-server-close"),
    *(
        _of_haproxy(f"haproxy-{mode}", f"HAProxy, `http-reuse {mode}`", f"http-reuse {mode}")
        for mode in ("never", "aggressive", "always")
    ),
    _app("apache-event", "Apache, event", _apache("event"), "apache2", "apache2-bin"),
    _app("apache-prefork", "Apache, prefork", _apache("prefork"), "apache2", "apache2-bin"),
    _app("caddy", "Caddy", _caddy, "caddy", "caddy", follows="go"),
    _app("lighttpd", "lighttpd", _lighttpd(), "lighttpd", "lighttpd"),
    _app("varnish", "Varnish", _varnish, "varnishd", "varnish", follows="proxies"),
    _app("squid", "Squid", _squid, "squid", "squid"),
    _of_nginx("nginx-both", "nginx, asked by TCP and by Unix socket", _both),
    _unix("unix-flask-sync", "nginx, Unix socket, Flask on gunicorn sync", _gunicorn("sync")),
    _unix(
        "unix-flask-gthread", "nginx, Unix socket, Flask on gunicorn gthread", _gunicorn("gthread")
    ),
    _unix("unix-flask-gevent", "nginx, Unix socket, Flask on gunicorn gevent", _gunicorn("gevent")),
    _unix(
        "unix-fastapi",
        "nginx, Unix socket, FastAPI on uvicorn with uvloop",
        _uvicorn("--loop", "uvloop"),
        SERVICE,
    ),
    _unix(
        "unix-fastapi-asyncio",
        "nginx, Unix socket, FastAPI on uvicorn",
        _uvicorn("--loop", "asyncio"),
        SERVICE,
    ),
    _unix(
        "unix-fastapi-kept",
        "nginx with keep-alive, Unix socket, FastAPI on uvicorn with two workers",
        _uvicorn("--workers", "2", kept=True),
        SERVICE,
    ),
    _unix(
        "unix-fastapi-gunicorn",
        "nginx, Unix socket, FastAPI on gunicorn with uvicorn's workers",
        _gunicorn("uvicorn.workers.UvicornWorker", "--workers", "2", app="asgi:app"),
        SERVICE,
    ),
    _unix(
        "unix-fastapi-hypercorn",
        "nginx, Unix socket, FastAPI on hypercorn",
        _behind_nginx("-m", "hypercorn", "--umask", "0", "--bind", "unix:{socket}", "asgi:app"),
        SERVICE,
    ),
    _unix(
        "unix-aiohttp",
        "nginx, Unix socket, aiohttp",
        _behind_nginx("-m", "web", SOCKET="{socket}"),
        SERVICE,
    ),
    _unix("unix-flask-uwsgi", "nginx, Unix socket, Flask on uWSGI", _uwsgi),
    _unix(
        "unix-apache",
        "Apache, Unix socket, FastAPI on uvicorn",
        _uvicorn_behind(_apache("event", "unix:{socket}|http://app/")),
    ),
    _unix(
        "unix-lighttpd",
        "lighttpd, Unix socket, FastAPI on uvicorn",
        _uvicorn_behind(_lighttpd('"host" => "{socket}"')),
    ),
    _unix(
        "unix-haproxy",
        "HAProxy, Unix socket, FastAPI on uvicorn",
        _uvicorn_behind(_haproxy("", "unix@{socket}")),
    ),
)
