"""No output of a rollout shows a credential, and no host keeps one that was rotated."""

from __future__ import annotations

import base64
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fleet import hosts, playbook, releases
from tests.fleet.hosts import Fleet
from tests.fleet.playbook import PlaybookError

BUNDLES = sorted(releases.DIST.glob(releases.PATTERN))

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="fleet hosts need root"),
    pytest.mark.skipif(not BUNDLES, reason="no agent bundle in dist/: run make bundle"),
]

NAME = "creds"
FIRST, SECOND, THIRD = (f"Bearer {word}-0123456789" for word in ("first", "second", "third"))
NUMBER = 987654321012
CONFIG = "/etc/throughline/config.yaml"
SEARCH = """
grep -rl '{0}' /etc /opt /root /home /run /tmp /var 2>/dev/null
journalctl -o cat | grep '{0}'
true
"""


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    with hosts.fleet(NAME, count=1) as running:
        yield running


def site(
    fleet: Fleet, bundle: Path, token: str | int | None, *options: str, **other: object
) -> str:
    """Rolls a configuration out with this token and returns all that Ansible says of it."""
    otlp: dict[str, object] = {"endpoint": "http://127.0.0.1:4318", "timeout": 2}
    if token is not None:
        otlp = {**otlp, "headers": {"authorization": token, "x-tenant": "7654321"}}
    return playbook.run(
        fleet,
        playbook.SITE,
        *("-vvv", "--diff", *options),
        quiet=True,
        throughline_bundle=str(bundle),
        throughline_config={"export": {"otlp": otlp}},
        **other,
    )


def told(output: str) -> list[str]:
    """The lines that name a credential, also in base64, in which Ansible takes files from hosts."""
    words = [token.split()[-1] for token in (FIRST, SECOND, THIRD)]
    encoded = [
        base64.b64encode(b"x" * skipped + word.encode()).decode()[4:-4]
        for word in words
        for skipped in range(3)
    ]
    wanted = [*words, *encoded, "7654321", str(NUMBER)]
    return [line for line in output.splitlines() if any(word in line for word in wanted)]


def left(fleet: Fleet, token: str) -> str:
    """The places on the host that have a token."""
    return fleet.run(fleet.hosts[0], SEARCH.format(token.split()[-1])).stdout.strip()


def test_no_output_shows_a_credential_and_an_old_one_is_gone(
    fleet: Fleet, bundle: Path, tmp_path: Path
) -> None:
    """Also when it belongs to the previous release, which stays for a rollback."""
    earlier = releases.make(bundle, tmp_path, version="0.0.9")
    outputs = [site(fleet, earlier, FIRST, "--check"), site(fleet, earlier, FIRST)]
    assert left(fleet, FIRST) == CONFIG
    outputs += [site(fleet, bundle, SECOND, "--check"), site(fleet, bundle, SECOND)]
    assert "authorization: (hidden, changed)" in outputs[-1]
    assert left(fleet, SECOND) == CONFIG
    assert left(fleet, FIRST) == "", "rotated, and healthy"
    outputs += [site(fleet, bundle, None, "--check"), site(fleet, bundle, None)]
    assert "-      authorization: (hidden)" in outputs[-1]
    assert left(fleet, SECOND) == "", "removed, and healthy"
    assert [told(output) for output in outputs] == [[]] * len(outputs)


def test_without_pipelining_nothing_is_told_either(fleet: Fleet, bundle: Path) -> None:
    output = site(fleet, bundle, SECOND, ansible_pipelining=False)
    assert told(output) == []
    assert left(fleet, SECOND) == CONFIG


def test_a_rollout_that_fails_brings_the_old_credential_back(
    fleet: Fleet, bundle: Path, tmp_path: Path
) -> None:
    broken = releases.make(bundle, tmp_path, version="0.2.0", fault="crashes")
    with pytest.raises(PlaybookError) as failed:
        site(fleet, broken, THIRD)
    assert "Rolled back: " in failed.value.output
    assert told(failed.value.output) == []
    assert (left(fleet, SECOND), left(fleet, THIRD)) == (CONFIG, "")


def test_a_credential_that_is_refused_is_not_shown(fleet: Fleet, bundle: Path) -> None:
    """YAML reads it as a number, which is not a header value."""
    with pytest.raises(PlaybookError) as failed:
        site(fleet, bundle, NUMBER)
    assert "headers.authorization: found " in failed.value.output
    assert told(failed.value.output) == []
    assert left(fleet, SECOND) == CONFIG


@pytest.mark.long
def test_what_somebody_has_edited_is_not_shown(fleet: Fleet, bundle: Path) -> None:
    """A file written by hand, in another form than the roles', with the old token in a comment."""
    fleet.run(
        fleet.hosts[0],
        f"printf '# was {FIRST}\\nexport: {{otlp: {{headers: {{authorization: {THIRD}}}}}}}\\n'"
        f" > {CONFIG}",
    )
    output = site(fleet, bundle, None, "--check")
    assert "The rest is not in the form that the roles write" in output
    assert told(output) == []
    output = site(fleet, bundle, None)
    assert told(output) == []
    assert left(fleet, THIRD) == ""
