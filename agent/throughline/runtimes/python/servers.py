"""Which programs of Python serve each request on one thread, and which work at jobs of a queue.

They are known by what a process was told to run: its arguments, not the modules that it has loaded
or the names of its threads, which any program may have. What an application does with the threads
that it makes itself is its own: `python app.py` is not known, whatever server it imports.

gunicorn has kinds of workers that run tasks (gevent, uvicorn). Their configuration may be anywhere,
so it is not looked for: contexts and greenlets are seen where they run (bpf/runtimes/python.h).
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from throughline.bpf import abi

_PYTHON = re.compile(r"python(\d+(\.\d+)?)?")
_UWSGI = re.compile(r"uwsgi(-core|_python\d*)?")
_GUNICORN = re.compile(r"gunicorn\d?")
_GUNICORN_TITLE = re.compile(r"gunicorn: (master|worker) \[")  # by setproctitle
_CELERY_TITLE = re.compile(r"\[celeryd: .*:MainProcess\]")
_RQ_TITLE = re.compile(r"rq:worker:")
_WORKERS = {"sync", "gthread"}
# options of uWSGI: a thread serves many requests
_TASKS = ("--async", "--gevent", "--asyncio", "--greenlet", "--ugreen", "--tornado", "--loop")
_OPTIONS_WITH_VALUE = {"-X", "-W", "--check-hash-based-pycs"}  # of the interpreter
_RUNSERVER = {"runserver", "runserver_plus"}
_MODULES = {"gunicorn": "gunicorn", "gunicorn.app.wsgiapp": "gunicorn", "flask": "flask"}
_MODULES |= {"django": "django-admin", "celery": "celery", "rq": "rq"}
_RQ = {"worker", "worker-pool"}
_PROCESSES = {"prefork", "processes"}


def are_threads(executable: str, words: Sequence[str]) -> bool:
    """Does a process with these arguments serve each request on one thread?

    `executable`: the path of the file that it executes; "" where that is not known.
    """
    if _UWSGI.fullmatch(_name(executable)):
        return _has_no_tasks(words)
    if not words:
        return False
    if _GUNICORN_TITLE.match(words[0]):
        return True
    if not _PYTHON.fullmatch(_name(words[0])):
        return False
    program, arguments = _program(words[1:])
    if _GUNICORN.fullmatch(program):
        return all(worker in _WORKERS for worker in _worker_classes(arguments))
    if program in ("uwsgi", "pyuwsgi"):
        return _has_no_tasks(arguments)
    if program == "flask":
        return "run" in arguments
    if program in ("manage.py", "django-admin"):
        return next((word for word in arguments if not word.startswith("-")), "") in _RUNSERVER
    return False


def works_at(words: Sequence[str]) -> abi.Jobs:
    """The queue at whose jobs children of a process with these arguments work.

    How the children take the jobs is not looked for here: bpf/runtimes/job.h sees it. With another
    pool of Celery's than that of processes a child is the application's own.
    """
    if not words:
        return abi.Jobs.NONE
    if _CELERY_TITLE.match(words[0]):  # its arguments follow in parentheses
        shown = " ".join(words).replace("(", " ").replace(")", " ").split()
        return abi.Jobs.CELERY if _has_processes(shown) else abi.Jobs.NONE
    if _RQ_TITLE.match(words[0]):
        return abi.Jobs.RQ
    if not _PYTHON.fullmatch(_name(words[0])):
        return abi.Jobs.NONE
    program, arguments = _program(words[1:])
    if program == "celery" and "worker" in arguments:
        return abi.Jobs.CELERY if _has_processes(arguments) else abi.Jobs.NONE
    if program == "rqworker" or (program == "rq" and _RQ.intersection(arguments)):
        return abi.Jobs.RQ
    return abi.Jobs.NONE


def _name(path: str) -> str:
    return path.removesuffix(" (deleted)").rpartition("/")[2]


def _has_no_tasks(words: Sequence[str]) -> bool:
    return not any(word.startswith(_TASKS) for word in words)


def _has_processes(words: Sequence[str]) -> bool:
    """Do Celery's arguments leave it the pool of processes, which is the default?"""
    for at, word in enumerate(words):
        option, equals, value = word.partition("=")
        if option in ("-P", "--pool"):
            return (value if equals else "".join(words[at + 1 : at + 2])) in _PROCESSES
        if word.startswith("-P"):
            return word[2:] in _PROCESSES
    return True


def _program(words: Sequence[str]) -> tuple[str, Sequence[str]]:
    """The program that the interpreter was told to run, and its arguments; "" where it has none."""
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if word == "-m":
            module = rest.pop(0) if rest else ""
            return _MODULES.get(module, ""), rest
        if word.startswith("-c") or word == "-":
            return "", ()
        if word in _OPTIONS_WITH_VALUE:
            rest[:1] = ()
        elif not word.startswith("-"):
            return _name(word), rest
    return "", ()


def _worker_classes(words: Sequence[str]) -> list[str]:
    """What gunicorn's arguments say of the class of its workers."""
    found = []
    for at, word in enumerate(words):
        option, equals, value = word.partition("=")
        if word in ("-k", "--worker-class"):
            found.append(words[at + 1] if at + 1 < len(words) else "")
        elif option == "--worker-class" and equals:
            found.append(value)
        elif word.startswith("-k"):
            found.append(word[2:])
    return found
