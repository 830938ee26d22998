"""Python: asyncio, uvloop, threads, gevent, forked workers; gRPC."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from tests.parents.app import SERVICE, App, Behaviour, Place, Process
from tests.parents.python import environment

_EVERY = tuple(Behaviour)
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


def _celery(place: Place) -> Sequence[Process]:
    """Flask, and the workers that make its calls."""
    (web,) = _gunicorn("tasks:app", "--worker-class", "gthread", "--threads", "32")(place)
    words = ("--app", "tasks:celery", "worker", "--concurrency", "4", "--loglevel", "ERROR")
    (worker,) = _python("-m", "celery", *words)(place)
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
        "fastapi-hypercorn",
        "FastAPI, hypercorn, httpx",
        _python("-m", "hypercorn", "--bind", "127.0.0.1:{port}", "asgi:app"),
        _EVERY,
    ),
    _app("aiohttp", "aiohttp, server and client", _python("-m", "web"), _EVERY),
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
    _app(
        "flask-run",
        "Flask, `flask run`, requests",
        _python("-m", "flask", "--app", "wsgi", "run", "--port", "{port}"),
        _EVERY,
    ),
    # what `python app.py` does is not known: its calls have no proven parent
    _app(
        "flask-app-run",
        "Flask, `app.run()`, requests",
        _python("-c", "import wsgi; wsgi.app.run(port={port})"),
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
    # nothing says for which request a task was queued: its calls have no parent
    _app("celery", "Flask, Celery, requests", _celery, (Behaviour.POOL,)),
    _app(
        "grpc-python",
        "gRPC server, requests",
        _python("-m", "rpc"),
        (Behaviour.AT_ONCE, Behaviour.SLEEP),
        "grpc",
    ),
)
