"""Python: asyncio, uvloop, threads, gevent, forked workers; gRPC."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from tests.fixtures import postgres
from tests.parents import apache, debian
from tests.parents.app import SERVICE, App, Behaviour, MissingError, Place, Process
from tests.parents.python import environment

_EVERY = tuple(Behaviour)
_DATABASE = (Behaviour.DATABASE,)
_SIMPLE = (Behaviour.AT_ONCE, Behaviour.SLEEP)
_SESSION = (
    *_SIMPLE,
    Behaviour.TWO,
    Behaviour.AFTER,
    Behaviour.BODY,
    Behaviour.POLLER,
)
_DJANGO = (Behaviour.AT_ONCE, Behaviour.SLEEP, Behaviour.DATABASE, Behaviour.BODY)


def _python(*words: str, **variables: str) -> Callable[[Place], Sequence[Process]]:
    """An application that is one command: the words behind `python`, with {port} in them."""

    def start(place: Place) -> Sequence[Process]:
        command = [
            environment.python(),
            *(word.format(port=place.port) for word in words),
        ]
        return [Process(command, environment={**environment.environment(), **variables})]

    return start


def _uvicorn(app: str, *words: str, **variables: str) -> Callable[[Place], Sequence[Process]]:
    return _python(
        "-m", "uvicorn", "--port", "{port}", "--log-level", "warning", *words, app, **variables
    )


def _older(app: str, *words: str) -> Callable[[Place], Sequence[Process]]:
    """uvicorn with packages in older versions."""

    def start(place: Place) -> Sequence[Process]:
        path = f"{environment.older()}:{environment.FOLDER}"
        return _uvicorn(app, *words, PYTHONPATH=path)(place)

    return start


def _gunicorn(app: str, *words: str) -> Callable[[Place], Sequence[Process]]:
    return _python("-m", "gunicorn", "--bind", "127.0.0.1:{port}", *words, app)


def _uwsgi(*words: str) -> Callable[[Place], Sequence[Process]]:
    """It closes each connection after the answer, and does not say so by itself.

    Each worker loads the application: threads of the master, and their locks, are not forked well.
    """

    def start(place: Place) -> Sequence[Process]:
        uwsgi = str(environment.directory() / "bin/uwsgi")
        close = ("--add-header", "Connection: close")
        listen = ("--http-socket", "127.0.0.1:{port}", "--master", "--lazy-apps")
        return _python(uwsgi, *listen, *close, *words)(place)

    return start


_CHEROOT = (
    "from cheroot.wsgi import Server; import wsgi; "
    "Server(('127.0.0.1', {port}), wsgi.app, numthreads=32, request_queue_size=128).start()"
)


def _install_all() -> None:
    """Brings PostgreSQL, too."""
    environment.install()
    debian.installs_all(postgres.PACKAGE)()


def _install_older() -> None:
    environment.install()
    environment.older()


_SCRIPT = "WSGISocketPrefix {folder}/wsgi\nWSGIScriptAlias / {folder}/site.wsgi\n"
_EMBEDDED = "WSGIPythonPath {path}"
_DAEMON = "WSGIDaemonProcess app processes=2 threads=16 python-path={path}\nWSGIProcessGroup app"


def _mod_wsgi(process: str) -> Callable[[Place], Sequence[Process]]:
    """Apache with mod_wsgi, which runs this Debian's Python with the environment's packages."""

    def start(place: Place) -> Sequence[Process]:
        (place.folder / "site.wsgi").write_text("from wsgi import app as application\n")
        path = f"{environment.packages()}:{environment.FOLDER}"
        file = place.folder / "apache.conf"
        more = _SCRIPT.format(folder=place.folder) + process.format(path=path)
        modules = ("mpm_event", "wsgi")
        file.write_text(apache.configuration(place.folder, place.port, modules, more))
        variables = environment.environment()
        return [Process(["apache2", "-D", "FOREGROUND", "-f", str(file)], environment=variables)]

    return start


def _install_mod_wsgi() -> None:
    debian.installs_all("apache2-bin", "libapache2-mod-wsgi-py3")()
    packages = environment.packages().parent.name
    if not Path("/usr/lib", packages).is_dir():
        raise MissingError(f"mod_wsgi has not {packages}, for which the packages are")


def _celery(place: Place) -> Sequence[Process]:
    """Flask, and the workers that make its calls."""
    (web,) = _gunicorn("tasks:app", "--worker-class", "gthread", "--threads", "32")(place)
    words = ("--app", "tasks:celery", "worker", "--concurrency", "4", "--loglevel", "ERROR")
    (worker,) = _python("-m", "celery", *words)(place)
    return [replace(web, name="web"), replace(worker, name="worker")]


def _rq(place: Place) -> Sequence[Process]:
    """Flask, and a worker that forks a process for each job."""
    (web,) = _gunicorn("jobs:app", "--worker-class", "gthread", "--threads", "32")(place)
    rq = str(environment.directory() / "bin/rq")
    address = f"redis://127.0.0.1:{place.redis}/2"
    pool = ("worker-pool", "--num-workers", "4", "--url", address, "--quiet")
    (worker,) = _python(rq, *pool)(place)
    return [replace(web, name="web"), replace(worker, name="worker")]


def _app(
    name: str,
    title: str,
    start: Callable[[Place], Sequence[Process]],
    behaviours: Sequence[Behaviour] = SERVICE,
    protocol: str = "http",
) -> App:
    return App(
        name=name,
        runtime="Python",
        title=title,
        start=start,
        behaviours=behaviours,
        install=environment.install,
        protocol=protocol,
        follows="python",
    )


def _on_postgres(name: str, title: str, start: Callable[[Place], Sequence[Process]]) -> App:
    return replace(_app(name, title, start, _DATABASE), install=_install_all, postgres=True)


# Not in the grid: a process for each job takes too long for all its requests.
RQ = _app("rq", "Flask, RQ, requests", _rq, (Behaviour.POOL,))
APPS = (
    _app(
        "fastapi-asyncio",
        "FastAPI, uvicorn, httpx",
        _uvicorn("asgi:app", "--loop", "asyncio"),
        _EVERY,
    ),
    _app(
        "fastapi-uvloop",
        "FastAPI, uvicorn with uvloop, httpx",
        _uvicorn("asgi:app", "--loop", "uvloop"),
        _EVERY,
    ),
    _app(
        "fastapi-threads", "FastAPI with `def` handlers, requests", _uvicorn("threads:app"), _EVERY
    ),
    _app(
        "fastapi-session",
        "FastAPI, uvicorn with uvloop, aiohttp's client",
        _uvicorn("session:app", "--loop", "uvloop"),
        _SESSION,
    ),
    # uvloop before 0.23 writes outside of the task that calls
    replace(
        _app(
            "fastapi-session-older",
            "FastAPI, uvicorn with uvloop 0.22, aiohttp's client",
            _older("session:app", "--loop", "uvloop"),
            _SESSION,
        ),
        install=_install_older,
    ),
    _on_postgres(
        "fastapi-postgres",
        "FastAPI, uvicorn with uvloop, asyncpg with a pool, httpx",
        _uvicorn("asgi:app", "--loop", "uvloop"),
    ),
    _on_postgres(
        "fastapi-threads-postgres",
        "FastAPI with `def` handlers, psycopg with a pool, requests",
        _uvicorn("threads:app"),
    ),
    _app(
        "fastapi-hypercorn",
        "FastAPI, hypercorn, httpx",
        _python("-m", "hypercorn", "--bind", "127.0.0.1:{port}", "asgi:app"),
        _EVERY,
    ),
    _app("aiohttp", "aiohttp, server and client", _python("-m", "web"), _EVERY),
    _app(
        "aiohttp-uvloop",
        "aiohttp on uvloop, server and client",
        _python(
            "-c",
            "import runpy, uvloop; uvloop.install(); runpy.run_module('web', run_name='__main__')",
        ),
        _EVERY,
    ),
    _app("sanic", "Sanic on its own server with uvloop, httpx", _python("-m", "fast"), _EVERY),
    _app(
        "django-asgi",
        "Django, uvicorn, httpx",
        _uvicorn("django_site:asgi", "--lifespan", "off", ASYNC="1"),
        (*_DJANGO, Behaviour.TWO, Behaviour.POOL),
    ),
    _app(
        "django-wsgi",
        "Django, gunicorn gthread, requests",
        _gunicorn("django_site:wsgi", "--worker-class", "gthread", "--threads", "32"),
        (*_DJANGO, Behaviour.POLLER),
    ),
    _app(
        "flask-sync",
        "Flask, gunicorn sync, requests",
        _gunicorn("wsgi:app", "--workers", "4"),
        _EVERY,
    ),
    _app(
        "flask-gthread",
        "Flask, gunicorn gthread, requests",
        _gunicorn("wsgi:app", "--worker-class", "gthread", "--threads", "32"),
        _EVERY,
    ),
    _on_postgres(
        "flask-postgres",
        "Flask, gunicorn gthread, psycopg with a pool, requests",
        _gunicorn("wsgi:app", "--worker-class", "gthread", "--threads", "32"),
    ),
    _app(
        "flask-run",
        "Flask, `flask run`, requests",
        _python("-m", "flask", "--app", "wsgi", "run", "--port", "{port}"),
        _EVERY,
    ),
    replace(
        _app(
            "flask-app-run",
            "Flask, `app.run()`, requests",
            _python("-c", "import wsgi; wsgi.app.run(port={port})"),
            _EVERY,
        ),
        accepts=True,
    ),
    replace(
        _app(
            "http-server",
            "`ThreadingHTTPServer` of the standard library, requests",
            _python("-m", "plain"),
            _EVERY,
        ),
        accepts=True,
    ),
    replace(
        _app("flask-cheroot", "Flask, cheroot, requests", _python("-c", _CHEROOT), _EVERY),
        accepts=True,
    ),
    _app(
        "flask-uwsgi",
        "Flask, uWSGI with threads, requests",
        _uwsgi("--threads", "32", "--module", "wsgi:app"),
        _EVERY,
    ),
    _app(
        "flask-waitress",
        "Flask, waitress, requests",
        _python("-m", "waitress", "--listen", "127.0.0.1:{port}", "--threads", "32", "wsgi:app"),
    ),
    _app(
        "django-runserver",
        "Django, `manage.py runserver`, requests",
        _python(
            str(Path(__file__).parent / "manage.py"),
            *("runserver", "--noreload", "127.0.0.1:{port}"),
        ),
        (*_DJANGO, Behaviour.POLLER),
    ),
    _app(
        "flask-gevent",
        "Flask, gunicorn gevent, requests",
        _gunicorn("wsgi:app", "--worker-class", "gevent"),
        _EVERY,
    ),
    replace(
        _app("mod-wsgi", "Flask, mod_wsgi in Apache, requests", _mod_wsgi(_EMBEDDED)),
        install=_install_mod_wsgi,
    ),
    # Apache hands requests over in mod_wsgi's own protocol: its calls have no parent
    replace(
        _app("mod-wsgi-daemon", "Flask, mod_wsgi as a daemon, requests", _mod_wsgi(_DAEMON)),
        install=_install_mod_wsgi,
    ),
    # nothing says for which request a task was queued: its calls have no parent
    _app("celery", "Flask, Celery, requests", _celery, (Behaviour.POOL,)),
    _app(
        "grpc-python",
        "gRPC server, requests",
        _python("-m", "rpc"),
        _SIMPLE,
        "grpc",
    ),
)
