"""Ruby: Puma's threads, which take requests over from its reactor, and Unicorn's processes.

The stacks are those of the bench (tests/parents).
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import pytest

from tests.fixtures import cgroup, needs
from tests.parents.app import App, Behaviour, MissingError, Place, Process
from tests.parents.apps import named
from tests.parents.cell import Bench, bench
from tests.parents.judge import Result
from tests.parents.ruby import releases
from tests.parents.ruby.apps import released, released_behind_nginx

REQUESTS, CONCURRENT = 211, 32
AT_ONCE, DATABASE, AFTER, BODY = (
    Behaviour.AT_ONCE,
    Behaviour.DATABASE,
    Behaviour.AFTER,
    Behaviour.BODY,
)
SLEEP, TWO, POOL, POLLER = Behaviour.SLEEP, Behaviour.TWO, Behaviour.POOL, Behaviour.POLLER
NEW = "8.0"  # of Puma


@pytest.fixture(scope="module")
def proven() -> Iterator[Bench]:
    with bench() as found:
        yield found


def run(bench: Bench, app: App, behaviour: Behaviour, *, closes: bool = False) -> Result:
    """`closes`: the server may close connections."""
    try:
        ((_, result),) = bench.run(app, (behaviour,), {CONCURRENT: REQUESTS})
    except MissingError as error:
        pytest.skip(str(error))
    assert closes or not result.failures, (app.name, behaviour, result.failures)
    assert result.wrong == 0, (app.name, behaviour, result.examples)
    return result


def puma(name: str, *, rackup: str = "", config: str = "", **variables: str) -> App:
    """An application on Puma of a later release. `rackup`: else Sinatra. `config`: Puma's own."""

    def start(place: Place) -> Sequence[Process]:
        words = ["--bind", f"tcp://127.0.0.1:{place.port}", "--environment", "production"]
        inner = releases.directory(NEW) / releases.LIBRARY.lstrip("/")
        (inner / f"{name}.rb").write_text(f"{config}\n")
        words += ["--config", f"{releases.LIBRARY}/{name}.rb"]
        if rackup:
            (inner / f"{name}.ru").write_text(rackup)
        words.append(f"{releases.LIBRARY}/{name if rackup else 'config'}.ru")
        return [Process(releases.command(NEW, "puma", *words), environment=variables)]

    return replace(named("sinatra"), name=name, start=start, install=releases.installs(NEW))


@pytest.mark.parametrize("behaviour", [AT_ONCE, SLEEP, DATABASE, AFTER, BODY, POLLER])
def test_puma(proven: Bench, behaviour: Behaviour) -> None:
    """With bodies every third request is read in part by the reactor, and handed over."""
    result = run(proven, named("sinatra"), behaviour)
    assert result.right == result.calls >= REQUESTS, result
    assert result.evidence["right by ruby"] >= REQUESTS // 2


@pytest.mark.parametrize("behaviour", [DATABASE, BODY])
@pytest.mark.parametrize("release", ["6.6", "8.0"])
def test_other_releases_of_puma(proven: Bench, release: str, behaviour: Behaviour) -> None:
    result = run(proven, released(release), behaviour)
    assert result.right == result.calls == REQUESTS, result


def test_puma_4(proven: Bench) -> None:
    """On Ruby 2.7. It closes kept connections without a word, also while no agent runs."""
    result = run(proven, released("4.3"), BODY, closes=True)
    assert result.right == result.calls > REQUESTS // 2, result


@pytest.mark.parametrize("behaviour", [AT_ONCE, BODY, POLLER])
@pytest.mark.parametrize("name", ["puma-cluster", "rails"])
def test_forked_workers_and_rails(proven: Bench, name: str, behaviour: Behaviour) -> None:
    result = run(proven, named(name), behaviour)
    assert result.right == result.calls >= REQUESTS, result


@pytest.mark.parametrize("release", ["6.6", "8.0"])
def test_other_releases_behind_a_unix_socket(proven: Bench, release: str) -> None:
    needs.program("tl_unix_sends")
    result = run(proven, released_behind_nginx(release), BODY)
    assert result.right == result.calls == REQUESTS, result


@pytest.mark.parametrize("behaviour", [TWO, POOL])
@pytest.mark.parametrize("name", ["sinatra", "nginx-puma"])
def test_work_of_other_threads_has_no_parent(
    proven: Bench, name: str, behaviour: Behaviour
) -> None:
    result = run(proven, named(name), behaviour)
    assert result.right == 0
    assert result.reasons["root_ruby_other_thread"] >= REQUESTS


@pytest.mark.parametrize("behaviour", [DATABASE, BODY])
def test_unicorn_behind_a_unix_socket(proven: Bench, behaviour: Behaviour) -> None:
    needs.program("tl_unix_sends")
    result = run(proven, named("nginx-unicorn"), behaviour)
    assert result.right == result.calls == REQUESTS, result


@pytest.mark.parametrize("behaviour", [AT_ONCE, DATABASE, AFTER, BODY, POLLER])
@pytest.mark.parametrize("name", ["nginx-puma", "nginx-puma-kept"])
def test_puma_behind_a_unix_socket(proven: Bench, name: str, behaviour: Behaviour) -> None:
    """It asks for the state of TCP connections only: the request's object is read."""
    needs.program("tl_unix_sends")
    result = run(proven, named(name), behaviour)
    assert result.right == result.calls >= REQUESTS, result


@pytest.mark.parametrize("behaviour", [AT_ONCE, DATABASE, BODY, POLLER])
def test_unicorn(proven: Bench, behaviour: Behaviour) -> None:
    result = run(proven, named("unicorn"), behaviour)
    assert result.right == result.calls >= REQUESTS, result
    assert result.evidence["right by thread"] >= REQUESTS


@pytest.mark.parametrize("config", ["queue_requests false", "set_remote_address '127.0.0.9'"])
def test_configurations_of_puma(proven: Bench, config: str) -> None:
    """Without a queue each thread reads its requests. An address that is set is not asked for."""
    result = run(proven, puma("configured", config=config), BODY)
    assert result.right == result.calls == REQUESTS, result


def test_a_fiber_for_each_request(proven: Bench) -> None:
    """Fibers could change places: their thread has taken nothing over. Their stacks tell."""
    result = run(proven, puma("fibers", config="fiber_per_request"), DATABASE)
    assert result.right == result.calls == REQUESTS, result
    assert proven.traced.counters()["ruby_shared_thread"] > 0


_HIJACKED = """\
# The connection is taken, and answered by another thread, while Puma's thread serves others.
require 'rack/utils'
require_relative 'calls'
WORK = Queue.new
4.times do
  Thread.new do
    while (io, id = WORK.pop)
      sleep 0.02
      Calls.at_once(id)
      io.write "HTTP/1.1 200 OK\\r\\nContent-Length: 2\\r\\nConnection: close\\r\\n\\r\\nok"
      io.close
    end
  end
end
run lambda { |env|
  id = Rack::Utils.parse_query(env['QUERY_STRING'])['id'].to_i
  if id.odd?
    env['rack.hijack'].call
    WORK << [env['rack.hijack_io'], id]
    [-1, {}, []]
  else
    [200, {}, [Calls.at_once(id)]]
  end
}
"""
_SWAPPED = """\
# Each thread of Puma waits while a thread of the application makes its call.
require 'rack/utils'
require_relative 'calls'
WORK = Queue.new
Array.new(8) do
  Thread.new do
    while (id, answer = WORK.pop)
      answer << Calls.at_once(id)
    end
  end
end
run lambda { |env|
  id = Rack::Utils.parse_query(env['QUERY_STRING'])['id'].to_i
  answer = Queue.new
  WORK << [id, answer]
  [200, {}, [answer.pop]]
}
"""


def test_threads_that_share_threads_of_the_kernel(proven: Bench) -> None:
    result = run(proven, puma("shared", RUBY_MN_THREADS="1"), DATABASE)
    assert result.right == 0, result
    assert proven.traced.counters()["ruby_shared_thread"] > 0


def test_connections_that_the_application_takes(proven: Bench) -> None:
    """rack.hijack: half of the requests are answered by threads of the application's own."""
    result = run(proven, puma("hijacked", rackup=_HIJACKED), AT_ONCE)
    assert result.right in (REQUESTS // 2, REQUESTS // 2 + 1), result


def test_connections_that_it_takes_from_a_unix_socket(proven: Bench) -> None:
    """Puma's thread goes on with requests that the reactor has read."""
    needs.program("tl_unix_sends")
    app = released_behind_nginx(NEW)

    def start(place: Place) -> Sequence[Process]:
        inner = releases.directory(NEW) / releases.LIBRARY.lstrip("/")
        (inner / "hijacked.ru").write_text(_HIJACKED)
        front, behind = app.start(place)
        words = [word.replace("config.ru", "hijacked.ru") for word in behind.command]
        return [front, replace(behind, command=words)]

    result = run(proven, replace(app, name="hijacked-unix", start=start), AT_ONCE)
    assert result.right in (REQUESTS // 2, REQUESTS // 2 + 1), result


def test_work_that_is_queued_in_the_application(proven: Bench) -> None:
    result = run(proven, puma("queue", rackup=_SWAPPED), AT_ONCE)
    assert result.right == 0, result


def test_what_runs_is_known_while_the_agent_is_away(proven: Bench) -> None:
    """And the next agent finds it again."""
    steps = proven.run_across(
        named("sinatra"), BODY, {1: 53, 8: 53, 32: 211}, number=signal.SIGKILL
    )
    before = next(steps)
    assert before.right == before.calls == 53
    for after in steps:
        assert not after.failures
        assert (after.wrong, after.right) == (0, after.calls), after


def _replaces(proven: Bench, how: Callable[[list[int]], None]) -> None:
    """Workers are replaced while requests come: none has a wrong parent."""
    app = named("puma-cluster")
    steps = proven.run(app, (BODY,), {8: 53, 32: 211, 1: 53})
    _, before = next(steps)
    assert before.right == before.calls == 53
    time.sleep(5)  # the agent has known the first process for five seconds: see provider.py
    service = proven.traced.cgroup / f"{app.name}-{BODY.value}"
    pids = sorted(cgroup.pids(service))
    how(pids)
    time.sleep(3)
    assert set(cgroup.pids(service)) != set(pids)
    for _, after in steps:
        assert not after.failures
        assert (after.wrong, after.right) == (0, after.calls), after


def test_a_worker_that_is_killed(proven: Bench) -> None:
    _replaces(proven, lambda pids: os.kill(pids[-1], signal.SIGKILL))


def test_a_restart_by_hand(proven: Bench) -> None:
    """SIGUSR2: Puma executes itself again."""
    _replaces(proven, lambda pids: os.kill(pids[0], signal.SIGUSR2))
