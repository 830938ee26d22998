"""A host below the required mode is refused with found, required and remedy, and stays as it is."""

from __future__ import annotations

from typing import Any

import pytest
from machine import Machine
from tests.vms.expected import GROUPS

pytestmark = pytest.mark.timeout(900)


@pytest.mark.proves(*GROUPS)
def test_site_refuses_the_host_and_changes_nothing(
    machine: Machine, record: dict[str, Any], seen: dict[str, Any]
) -> None:
    if not machine.platform.refused:
        pytest.skip("site.yml accepts this platform")
    before = machine.look()
    played = machine.play("site")
    after = machine.look()
    # YAML, which the output may be, doubles the quotes in quoted words
    words = " ".join(played.output.partition("fatal: ")[2].split()).replace("''", "'")
    seen.update(code=played.code, changed=played.changed, message=words[:1000])
    record["groups"] = machine.report()["groups"]
    assert played.code != 0, "site.yml did not refuse the host"
    for word in (f"Found mode '{machine.platform.mode}', required mode 'network'", "Remedy:"):
        assert word in words
    assert [reason for reason in machine.platform.refused if reason not in words] == []
    assert played.changed == 0
    for key in ("boot_id", "mounts", "files", "users", "bpf"):
        assert after[key] == before[key], key


def test_traffic_is_left_alone(machine: Machine) -> None:
    if machine.platform.on:
        pytest.skip("traced: site.yml accepts this platform")
    sent = machine.send("refused", spans=0)
    assert len(sent.requests) == 23
    assert [one.cart for one in sent.requests if "traceparent" in one.received] == []
    assert (sent.spans, sent.others) == ([], [])
