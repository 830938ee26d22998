"""The effect of a rollout on a running agent: none, one reload, or one restart."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from machine import ROLLOUT, Look, Machine, Played
from test_chain import SPANS, check_spans, check_traces
from tests.fleet import joined

pytestmark = [pytest.mark.usefixtures("accepted"), pytest.mark.timeout(900)]

DROP_IN = "/etc/systemd/system/throughline.service.d/capabilities.conf"


def did(before: Look, after: Look) -> dict[str, Any]:
    """How often systemd has started and reloaded the agent between two looks."""
    return {
        "starts": after["agent"]["starts"] - before["agent"]["starts"],
        "reloads": after["agent"]["reloads"] - before["agent"]["reloads"],
        "same process": after["agent"]["unit"]["MainPID"] == before["agent"]["unit"]["MainPID"],
    }


def rollout(machine: Machine, **variables: object) -> Played:
    """site.yml once more; AssertionError with its end when it fails."""
    played = machine.play("site", **variables)
    assert played.code == 0, played.output[-3000:]
    return played


def test_a_second_rollout_changes_nothing(machine: Machine, seen: dict[str, Any]) -> None:
    before = machine.look()
    seen["changed"] = rollout(machine).changed
    assert seen["changed"] == 0
    after = machine.look(healthy=30)
    seen.update(did(before, after))
    assert did(before, after) == {"starts": 0, "reloads": 0, "same process": True}


@pytest.mark.usefixtures("also")
@pytest.mark.proves("observe", "headers")
def test_a_configuration_without_headers_is_one_reload(
    machine: Machine, seen: dict[str, Any]
) -> None:
    before = machine.look()
    config = yaml.safe_load(ROLLOUT.read_text(encoding="utf-8"))["throughline_config"]
    seen["changed"] = rollout(
        machine,
        throughline_config={**config, "propagation": {"parents": "likely", "headers": "off"}},
    ).changed
    after = machine.look(healthy=30)
    seen.update(did(before, after))
    assert did(before, after) == {"starts": 0, "reloads": 1, "same process": True}
    groups = after["agent"]["status"]["groups"]
    assert (groups["observe"]["state"], groups["headers"]["state"]) == ("on", "off")
    assert groups["headers"]["reason"] == "propagation.headers is off"
    sent = machine.send("unwritten", spans=SPANS)
    check_spans(sent)
    assert [one.cart for one in sent.requests if "traceparent" in one.received] == []
    assert joined.check(sent.requests, sent.spans, secure=sent.secure) != [], (
        "this would not see a missing header"
    )


@pytest.mark.usefixtures("also")
@pytest.mark.proves("headers")
def test_a_changed_unit_is_one_restart(machine: Machine, seen: dict[str, Any]) -> None:
    machine.run(f"echo '# changed by somebody' >> {DROP_IN}")
    before = machine.look()
    rollout(machine)  # also brings the headers back
    after = machine.look(healthy=60)
    seen.update(did(before, after))
    assert did(before, after) == {"starts": 1, "reloads": 0, "same process": False}
    assert "somebody" not in machine.run(f"cat {DROP_IN}")
    check_traces(machine, machine.send("restarted", spans=SPANS))
