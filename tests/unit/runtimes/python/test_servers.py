"""Which command lines are those of servers that serve each request on one thread."""

from __future__ import annotations

import pytest

from throughline.runtimes.python.servers import are_threads

KNOWN = [
    "/venv/bin/python /venv/bin/gunicorn app:app",
    "/usr/bin/python3 /usr/bin/gunicorn3 -w 4 app:app",
    "python3.11 -m gunicorn --worker-class gthread --threads 32 app:app",
    "python -m gunicorn.app.wsgiapp -k sync app:app",
    "python -X dev -W error -u /opt/bin/gunicorn --worker-class=gthread app:app",
    "python /opt/bin/gunicorn -kgthread app:app",
    "python -m flask --app wsgi run --port 80",
    "/venv/bin/python3 /venv/bin/flask run",
    "python manage.py runserver 0.0.0.0:80",
    "python ./site/manage.py --settings=x runserver",
    "python /venv/bin/django-admin runserver_plus",
    "python -m django runserver",
    "python /venv/bin/uwsgi --http-socket :80",
]
UNKNOWN = [
    "",
    "python",
    "python app.py",
    "python -m app gunicorn",
    "python -c import\tgunicorn gunicorn",
    "python - gunicorn",
    "python -m",
    "python -X",
    "python app.py flask run",
    "python gunicorn.py app:app",
    "ruby /usr/bin/gunicorn app:app",
    "python /venv/bin/gunicorn -k gevent app:app",
    "python /venv/bin/gunicorn -kgevent app:app",
    "python /venv/bin/gunicorn --worker-class=uvicorn.workers.UvicornWorker app:app",
    "python /venv/bin/gunicorn --worker-class eventlet app:app",
    "python /venv/bin/gunicorn app:app -k",
    "python -m flask shell",
    "python manage.py migrate runserver",
    "python manage.py",
    "python -m uvicorn app:app",
    "python /venv/bin/uwsgi --gevent 100",
    "python /venv/bin/waitress-serve app:app",
]


@pytest.mark.parametrize("line", KNOWN)
def test_known(line: str) -> None:
    assert are_threads("/usr/bin/python3.11", line.split(" "))


@pytest.mark.parametrize("line", UNKNOWN)
def test_unknown(line: str) -> None:
    assert not are_threads("/usr/bin/python3.11", line.split(" "))


def test_titles_and_executables() -> None:
    assert are_threads("/usr/bin/python3.11", ["gunicorn: worker [app:app]"])
    assert not are_threads("/usr/bin/python3.11", ["celery: worker [app:app]"])
    assert are_threads("/usr/bin/uwsgi-core (deleted)", ["/etc/alternatives/uwsgi", "--ini", "a"])
    assert not are_threads("/usr/bin/uwsgi-core", ["uwsgi", "--gevent=20"])
    assert not are_threads("/usr/bin/uwsgi-core", ["uwsgi", "--async", "20"])
