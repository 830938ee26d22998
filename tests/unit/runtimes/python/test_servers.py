"""Which command lines are those of servers that serve each request on one thread."""

from __future__ import annotations

import pytest

from throughline.bpf.abi import Jobs
from throughline.runtimes.python.servers import are_threads, works_at

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


JOBS = {
    "/app/bin/python -m celery --app shop worker --concurrency 4": Jobs.CELERY,
    "/usr/bin/python3 /usr/bin/celery -A shop worker": Jobs.CELERY,
    "/usr/bin/python3 /usr/bin/celery -A shop worker -P prefork": Jobs.CELERY,
    "/usr/bin/python3 /usr/bin/celery -A shop worker --pool=processes": Jobs.CELERY,
    # children of these workers are the tasks' own
    "/usr/bin/python3 /usr/bin/celery -A shop worker -P solo": Jobs.NONE,
    "/usr/bin/python3 /usr/bin/celery -A shop worker -Pthreads": Jobs.NONE,
    "/usr/bin/python3 /usr/bin/celery -A shop worker --pool=gevent": Jobs.NONE,
    "/usr/bin/python3 /usr/bin/celery -A shop worker --pool": Jobs.NONE,
    "/usr/bin/python3 /usr/bin/celery -A shop beat": Jobs.NONE,
    "/app/bin/python /app/bin/rq worker --url redis://localhost high": Jobs.RQ,
    "/app/bin/python -m rq worker-pool -n 4": Jobs.RQ,
    "/app/bin/python3.11 /app/bin/rqworker": Jobs.RQ,
    "/app/bin/python /app/bin/rq info": Jobs.NONE,
    "/app/bin/python worker.py celery worker": Jobs.NONE,
    "/bin/sh -c celery worker": Jobs.NONE,
    "": Jobs.NONE,
}


@pytest.mark.parametrize(("line", "jobs"), JOBS.items())
def test_workers_of_queues(line: str, jobs: Jobs) -> None:
    assert works_at(line.split(" ") if line else []) == jobs


def test_titles_of_workers_of_queues() -> None:
    assert works_at(["[celeryd: celery@a:MainProcess] -active- (worker)"]) == Jobs.CELERY
    assert works_at(["[celeryd: celery@a:MainProcess] -active- (worker -P solo)"]) == Jobs.NONE
    assert works_at(["[celeryd: celery@a:ForkPoolWorker-1]"]) == Jobs.NONE
    assert works_at(["rq:worker:4f1c: Listening on high"]) == Jobs.RQ
