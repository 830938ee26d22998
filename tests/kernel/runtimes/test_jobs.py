"""Jobs of Celery and RQ: the calls of one job are one trace, with a span of the job as its root."""

from __future__ import annotations

import contextlib
import signal
import time
import urllib.request
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import pytest

from tests.fixtures import needs
from tests.fixtures.spans import Span
from tests.fixtures.waiting import until
from tests.parents.app import App, Behaviour, MissingError, Place, Process
from tests.parents.apps import named
from tests.parents.cell import Bench, bench
from tests.parents.judge import number_of
from tests.parents.python.apps import RQ

CELERY = named("celery")
OF_JOB = ("first", "second", "task", "last")  # and "thread", which is RQ's only
QUEUE = {CELERY.name: "celery", RQ.name: "rq"}


@dataclass(frozen=True, slots=True)
class Seen:
    """What was exported: the spans of jobs and calls of the workers."""

    jobs: Sequence[Span]
    calls: Mapping[int, Mapping[str, Span]]  # by number and name of the part
    headers: Mapping[str, str]  # by span id of the parent: what the backend was asked for
    spans: Sequence[Span]


@contextlib.contextmanager
def started(bench: Bench, app: App) -> Iterator[tuple[Place, str]]:
    """The application runs; its place, and the name of the workers' service."""
    try:
        app.install()
    except MissingError as error:
        pytest.skip(str(error))
    with bench.instance(app, Behaviour.POOL) as instance:
        yield instance.place, instance.services[-1]


def ask(place: Place, path: str, numbers: Sequence[int], *, concurrent: int) -> list[str]:
    def one(number: int) -> str:
        url = f"http://127.0.0.1:{place.port}/{path}?id={number}"
        with urllib.request.urlopen(url, timeout=60) as answer:
            return str(answer.read(), "utf-8")

    with ThreadPoolExecutor(concurrent) as pool:
        return list(pool.map(one, numbers))


def seen(bench: Bench, worker: str, *, calls: int, jobs: int) -> Seen:
    """Waits for so many spans of the workers."""
    receiver = bench.traced.receiver

    def of(kind: str) -> list[Span]:
        return [span for span in receiver.spans if (span.service, span.kind) == (worker, kind)]

    with contextlib.suppress(TimeoutError):
        until(lambda: len(of("CLIENT")) >= calls and len(of("CONSUMER")) >= jobs, seconds=20)
    time.sleep(0.5)  # what should not come
    by_number: dict[int, dict[str, Span]] = defaultdict(dict)
    for span in of("CLIENT"):
        number = number_of(span.path)
        if number is not None:
            by_number[number][span.path[1:].partition("?")[0]] = span
    headers = {header.split("-")[2]: target for target, header in bench.take() if header}
    return Seen(of("CONSUMER"), by_number, headers, list(receiver.spans))


def judge(found: Seen, numbers: Sequence[int], parts: Sequence[str], queue: str) -> None:
    """Each job is one trace: its calls are children of its span, and nothing else is in it."""
    jobs = {job.span_id: job for job in found.jobs}
    assert len(jobs) == len(numbers)
    assert len({job.trace_id for job in found.jobs}) == len(numbers)
    roots = set()
    for number in numbers:
        calls = {name: found.calls[number][name] for name in parts}
        (parent,) = {call.parent_span_id for call in calls.values()}
        job = jobs[parent]
        roots.add(parent)
        assert job.name == f"{queue} job"
        assert job.attributes["throughline.job"] == queue
        assert not job.parent_span_id
        for name, call in calls.items():
            assert call.trace_id == job.trace_id
            assert call.evidence == "job"
            assert job.start_ns <= call.start_ns <= call.end_ns <= job.end_ns
            assert found.headers[call.span_id] == f"/{name}?id={number}"
        others = [span for span in found.spans if span.trace_id == job.trace_id]
        assert len(others) == len(parts) + 1
    assert roots == set(jobs)


@pytest.mark.parametrize("app", [CELERY, RQ], ids=lambda app: app.name)
def test_the_calls_of_a_job_are_one_trace(running: Bench, app: App) -> None:
    """Four workers, eight jobs at a time. Of RQ's process all threads work at the job."""
    numbers = range(10_000, 10_000 + (101 if app is CELERY else 23))
    with started(running, app) as (place, worker):
        running.traced.receiver.forget_spans()
        running.take()
        before = running.traced.counters()
        ask(place, "job/parts", numbers, concurrent=8)
        found = seen(running, worker, calls=5 * len(numbers), jobs=len(numbers))
        parts = OF_JOB if app is CELERY else (*OF_JOB, "thread")
        judge(found, numbers, parts, QUEUE[app.name])
        after = running.traced.counters()
        assert after["jobs_begun"] - before.get("jobs_begun", 0) == len(numbers)
        assert after["parent_job"] - before.get("parent_job", 0) == len(parts) * len(numbers)
        if app is CELERY:  # a thread that is not the worker's own may be anybody's
            for number in numbers:
                assert not found.calls[number]["thread"].parent_span_id


def with_words(*words: str) -> App:
    """Celery's worker with more arguments."""

    def start(place: Place) -> Sequence[Process]:
        web, worker = CELERY.start(place)
        return [web, replace(worker, command=[*worker.command, *words])]

    return replace(CELERY, name="celery-more", start=start)


def test_a_child_that_replaces_another_one_is_known_at_once(running: Bench) -> None:
    """Each works at three jobs."""
    numbers = range(20_000, 20_053)
    with started(running, with_words("--max-tasks-per-child", "3")) as (place, worker):
        running.traced.receiver.forget_spans()
        running.take()
        ask(place, "job/parts", numbers, concurrent=8)
        found = seen(running, worker, calls=5 * len(numbers), jobs=len(numbers))
        judge(found, numbers, OF_JOB, "celery")


def test_a_job_that_ends_with_its_process(running: Bench) -> None:
    numbers = range(30_000, 30_007)
    with started(running, CELERY) as (place, worker):
        running.traced.receiver.forget_spans()
        running.take()
        ask(place, "job/dies", numbers, concurrent=2)
        found = seen(running, worker, calls=len(numbers), jobs=len(numbers))
        judge(found, numbers, ["first"], "celery")


def test_calls_that_have_a_context_of_their_own(running: Bench) -> None:
    """An instrumented worker has a span of its job already."""
    numbers = range(40_000, 40_023)
    with started(running, CELERY) as (place, worker):
        running.traced.receiver.forget_spans()
        ask(place, "job/adopts", numbers, concurrent=4)
        found = seen(running, worker, calls=len(numbers), jobs=0)
        assert not found.jobs
        for number in numbers:
            assert found.calls[number]["own"].trace_id == f"{number:032x}"


def test_what_looks_like_a_job_is_never_two_jobs(running: Bench) -> None:
    """A job that reads from another pipe of its parent's is two traces, but none has two jobs."""
    numbers = range(50_000, 50_053)
    with started(running, CELERY) as (place, worker):
        running.traced.receiver.forget_spans()
        ask(place, "job/reads", numbers, concurrent=8)
        found = seen(running, worker, calls=2 * len(numbers), jobs=len(numbers))
        of_trace = defaultdict(set)
        for number in numbers:
            for call in found.calls[number].values():
                of_trace[call.trace_id].add(number)
        assert all(len(jobs) == 1 for jobs in of_trace.values())


@pytest.mark.parametrize("pool", ["threads", "solo", "gevent"])
def test_other_pools_of_celery_tell_nothing(running: Bench, pool: str) -> None:
    """A thread gets its jobs by memory: each call begins a trace."""
    numbers = range(60_000, 60_011)
    with started(running, with_words("--pool", pool)) as (place, worker):
        running.traced.receiver.forget_spans()
        before = running.traced.counters().get("jobs_begun", 0)
        ask(place, "pool", numbers, concurrent=4)
        found = seen(running, worker, calls=len(numbers), jobs=0)
        assert not found.jobs
        assert not any(found.calls[number]["call"].parent_span_id for number in numbers)
        assert running.traced.counters().get("jobs_begun", 0) == before


@pytest.mark.parametrize("app", [CELERY, RQ], ids=lambda app: app.name)
def test_jobs_while_the_agent_changes(running: Bench, app: App) -> None:
    """Celery's are followed without a break. None is ever in the trace of another one.

    Spans are lost with the agent that is killed. So what the backend was asked for is judged.
    """
    numbers = range(70_000, 70_000 + (211 if app is CELERY else 53))
    with started(running, app) as (place, _):
        running.take()
        with ThreadPoolExecutor(1) as other:
            load = other.submit(ask, place, "job/parts", numbers, concurrent=4)
            time.sleep(1)
            running.traced.stop_agent(signal.SIGKILL)
            running.traced.start_agent()
            load.result()
        traces, jobs = defaultdict(set), defaultdict(set)  # by number, by trace
        for target, header in running.take():
            if not target.startswith("/thread"):
                number, trace = number_of(target), header.split("-")[1]
                traces[number].add(trace)
                jobs[trace].add(number)
        assert set(traces) == set(numbers)
        assert all(len(of) == 1 for of in jobs.values())
        if app is CELERY:
            assert all(len(of) == 1 for of in traces.values())


def test_all_of_a_job_is_sampled_or_nothing() -> None:
    needs.any_uprobes()
    numbers = range(80_000, 80_101)
    sampling = {"sampler": "parentbased_traceidratio", "arg": 0.5}
    with bench(sampling=sampling) as half, started(half, CELERY) as (place, worker):
        half.traced.receiver.forget_spans()
        ask(place, "job/parts", numbers, concurrent=8)
        found = seen(half, worker, calls=5 * len(numbers), jobs=len(numbers))
        jobs = {job.span_id for job in found.jobs}
        assert 20 < len(jobs) < 81
        for calls in found.calls.values():
            of_job = [calls[name] for name in OF_JOB if name in calls]
            assert len(of_job) in (0, len(OF_JOB))
            assert {call.parent_span_id for call in of_job} <= jobs
