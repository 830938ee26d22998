"""No output of a rollout shows a credential, and no host keeps a rotated one."""

from __future__ import annotations

import base64
import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

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
VAULTED = ("inline-0123456789", "in-a-file-0123456789", "composed-0123456789")
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
    """Rolls a configuration with this token out. Returns the whole output of Ansible."""
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


def encrypt(folder: Path, *words: str, content: str = "") -> str:
    """The output of ansible-vault with the password of `folder`."""
    program = Path(sys.executable).with_name("ansible-vault")
    return subprocess.run(
        [program, *words, f"--vault-password-file={folder / 'password'}"],
        check=True,
        input=content,
        capture_output=True,
        text=True,
    ).stdout


def told(output: str) -> list[str]:
    """The lines with a credential, in plain text or in base64, as Ansible reads files."""
    words = [token.split()[-1] for token in (FIRST, SECOND, THIRD, *VAULTED)]
    encoded = [
        base64.b64encode(b"x" * skipped + word.encode()).decode()[4:-4]
        for word in words
        for skipped in range(3)
    ]
    wanted = [*words, *encoded, "7654321", str(NUMBER)]
    return [line for line in output.splitlines() if any(word in line for word in wanted)]


def left(fleet: Fleet, token: str) -> str:
    """The files on the host that have a token."""
    return fleet.run(fleet.hosts[0], SEARCH.format(token.split()[-1])).stdout.strip()


def test_no_output_shows_a_credential_and_an_old_one_is_gone(
    fleet: Fleet, bundle: Path, tmp_path: Path
) -> None:
    """The previous release stays on the host, and its token does not."""
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
    """YAML reads it as a number, which is not a valid header value."""
    with pytest.raises(PlaybookError) as failed:
        site(fleet, bundle, NUMBER)
    assert "headers.authorization: found " in failed.value.output
    assert told(failed.value.output) == []
    assert left(fleet, SECOND) == CONFIG


def test_secrets_may_come_from_a_vault(fleet: Fleet, bundle: Path, tmp_path: Path) -> None:
    """A value that is encrypted itself, one of an encrypted file, and one in other strings."""
    inline, filed, composed = VAULTED
    (tmp_path / "password").write_text("password of the vault\n")
    (tmp_path / "vault.yml").write_text(f"vault_filed: {filed}\n")
    encrypt(tmp_path, "encrypt", str(tmp_path / "vault.yml"))
    (tmp_path / "variables.yml").write_text(
        encrypt(tmp_path, "encrypt_string", "--stdin-name=vault_composed", content=composed)
        + "throughline_config:\n  export:\n    otlp:\n      endpoint: http://127.0.0.1:4318\n"
        + "      headers:\n        x-composed: Bearer {{ vault_composed }}\n"
        + "        x-alone: '{{ vault_composed }}'\n        x-filed: '{{ vault_filed }}'\n"
        + textwrap.indent(
            encrypt(tmp_path, "encrypt_string", "--stdin-name=x-inline", content=inline), " " * 8
        )
    )
    options = ["-vvv", "--diff", f"--vault-password-file={tmp_path / 'password'}"]
    options += [f"-e@{tmp_path / name}" for name in ("vault.yml", "variables.yml")]
    output = playbook.run(
        fleet, playbook.SITE, *options, quiet=True, throughline_bundle=str(bundle)
    )
    written = yaml.safe_load(fleet.run(fleet.hosts[0], f"cat {CONFIG}").stdout)
    shown = written["export"]["otlp"]["headers"]
    assert shown == {
        "x-composed": f"Bearer {composed}",
        "x-alone": composed,
        "x-filed": filed,
        "x-inline": inline,
    }
    assert told(output) == []


@pytest.mark.long
def test_what_somebody_has_edited_is_not_shown(fleet: Fleet, bundle: Path) -> None:
    """The file is in another form than the roles write, and has the old token in a comment."""
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
