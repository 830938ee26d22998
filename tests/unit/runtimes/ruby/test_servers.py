"""Which servers of Ruby are known, by the titles that they give their processes."""

from __future__ import annotations

import pytest

from throughline.runtimes.ruby.servers import Server, server

RUBY = "/usr/bin/ruby3.1"


@pytest.mark.parametrize(
    ("title", "expected"),
    [
        ("puma 5.6.5 (tcp://127.0.0.1:9292) [app]", Server.PUMA),
        ("puma 7.0.0.pre1 (unix:///run/app.socket)", Server.PUMA),
        ("puma: cluster worker 0: 4711 [app]", Server.PUMA),
        ("unicorn master -c unicorn.rb", Server.UNICORN),
        ("unicorn worker[3] -c unicorn.rb", Server.UNICORN),
        ("unicorn_rails worker[0] -E production", Server.UNICORN),
        ("unicorn", None),
        ("pumactl start", None),
        ("puma", None),
        ("ruby app.rb", None),
        ("sidekiq 7.0 app [0 of 5 busy]", None),
        ("Passenger RubyApp: /srv/app", None),
        ("", None),
    ],
)
def test_titles(title: str, expected: Server | None) -> None:
    assert server(RUBY, [title]) is expected


@pytest.mark.parametrize(
    ("executable", "expected"),
    [
        ("/usr/local/bin/ruby", Server.PUMA),
        ("/usr/bin/ruby3.1 (deleted)", Server.PUMA),
        ("/usr/bin/ruby.ruby3.4", Server.PUMA),
        ("/usr/bin/python3", None),
        ("", None),
    ],
)
def test_only_ruby_is_asked(executable: str, expected: Server | None) -> None:
    assert server(executable, ["puma 7.2.1 (tcp://0.0.0.0:3000) [app]"]) is expected


def test_nothing_is_known_without_a_title() -> None:
    assert server(RUBY, []) is None
