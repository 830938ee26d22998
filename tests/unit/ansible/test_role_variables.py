"""The roles compute the unit's capabilities and the agent's configuration from a host's verdict."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ansible.parsing.dataloader import DataLoader  # type: ignore[import-untyped]
from ansible.template import Templar  # type: ignore[import-untyped]

from tests.fixtures.paths import CHECKOUT
from tests.fixtures.plugins import EVERYTHING, UNLOCKED, plugin, verdict

LOCKED = "none [integrity] confidentiality"
DEFAULT = (
    "observe",
    "headers",
    "packets",
    "tls",
    "go",
    "java",
    "python",
    "proxies",
    "ruby",
    "node",
)
NETWORK = {"CAP_BPF", "CAP_NET_ADMIN", "CAP_PERFMON"}
READS = {"CAP_SYS_PTRACE"}
PROBES, ADMIN = {"CAP_LEASE", "CAP_SYS_PTRACE"}, {"CAP_SYS_ADMIN"}


def computed(role: str, variable: str, **given: Any) -> Any:
    """A variable of a role, as its templates get it."""
    loader = DataLoader()
    file = str(CHECKOUT / "roles" / role / "vars/main.yml")
    variables = loader.load_from_file(file, trusted_as_template=True)
    return Templar(loader=loader, variables={**variables, **given}).template(variables[variable])


def capabilities(preflight: dict[str, Any]) -> set[str]:
    """The capabilities that the unit gets on a host with this verdict."""
    given = {"ansible_facts": {"throughline_preflight": preflight}}
    return set(computed("capabilities", "__throughline_capabilities", **given))


@pytest.mark.parametrize(
    ("wanted", "uprobes", "lockdown", "consent", "granted"),
    [
        (DEFAULT, "multi", UNLOCKED, False, NETWORK | PROBES),
        (("observe", "headers"), "multi", UNLOCKED, True, NETWORK),
        (EVERYTHING, "multi", UNLOCKED, False, NETWORK | PROBES | ADMIN),
        (EVERYTHING, "multi", LOCKED, False, NETWORK | PROBES),  # it could not be used
        (EVERYTHING, "multi", LOCKED, True, NETWORK | PROBES),
        (("observe", "go_write"), "multi", UNLOCKED, False, NETWORK),  # nothing without go
        # uprobes ask for it, too: a process of its own has it then
        (DEFAULT, "admin", UNLOCKED, False, NETWORK | PROBES),
        (DEFAULT, "admin", UNLOCKED, True, NETWORK | PROBES | ADMIN),
        (EVERYTHING, "admin", UNLOCKED, False, NETWORK | PROBES | ADMIN),
        (EVERYTHING, "admin", LOCKED, False, NETWORK | PROBES),
        (EVERYTHING, "admin", LOCKED, True, NETWORK | PROBES | ADMIN),
    ],
)
def test_sys_admin_is_granted_where_it_is_asked_for_and_of_use(
    tmp_path: Path,
    wanted: tuple[str, ...],
    uprobes: str,
    lockdown: str,
    consent: bool,
    granted: set[str],
) -> None:
    found = verdict(
        tmp_path, wanted=wanted, uprobes=uprobes, lockdown=lockdown, allow_sys_admin=consent
    )
    assert capabilities(found) == granted


@pytest.mark.parametrize(
    ("given", "granted", "process"),
    [
        ({"uprobes": "admin"}, NETWORK | PROBES, True),
        ({"uprobes": "admin", "probe_process": False}, NETWORK | READS, False),
        ({"uprobes": "admin", "allow_sys_admin": True}, NETWORK | PROBES | ADMIN, False),
        # go_write gives the agent the capability
        ({"uprobes": "admin", "wanted": EVERYTHING}, NETWORK | PROBES | ADMIN, False),
        ({"uprobes": "admin", "wanted": ("observe", "headers")}, NETWORK, False),
        ({"uprobes": "multi"}, NETWORK | PROBES, False),
        ({"uprobes": "perf"}, NETWORK | PROBES, False),
        ({"uprobes": None}, NETWORK | PROBES, False),
    ],
)
def test_the_process_that_opens_uprobes_comes_where_the_agent_may_not(
    tmp_path: Path, given: dict[str, Any], granted: set[str], process: bool
) -> None:
    found = verdict(tmp_path, **{"wanted": DEFAULT, "lockdown": UNLOCKED, **given})
    assert (capabilities(found), found["probe_process"]) == (granted, process)


def test_files_are_not_guarded_where_no_unit_can(tmp_path: Path) -> None:
    """In a container that has everything but CAP_LEASE."""
    found = verdict(tmp_path, capabilities="000001ffefffffff")
    assert capabilities(found) == NETWORK | PROBES - {"CAP_LEASE"}


@pytest.mark.parametrize(
    ("wanted", "instrumentation", "written"),
    [
        (DEFAULT, {}, {"go_write": "off"}),
        (EVERYTHING, {}, {"go_write": "auto"}),
        (EVERYTHING, {"go_write": "off"}, {"go_write": "off"}),
        (DEFAULT, {"go_write": "auto"}, {"go_write": "off"}),
        (
            ("observe", "headers", "packets"),
            {},
            dict.fromkeys(
                ("tls", "go", "go_write", "java", "python", "proxies", "ruby", "node"), "off"
            ),
        ),
    ],
)
def test_the_agent_is_told_what_is_wanted(
    wanted: tuple[str, ...], instrumentation: dict[str, str], written: dict[str, str]
) -> None:
    given = {
        "throughline_groups": list(wanted),
        "throughline_config": {"instrumentation": instrumentation} if instrumentation else {},
        "throughline_peers": ["10.0.0.0/8"],
    }
    effective = computed("agent", "__throughline_effective", **given)
    assert effective.get("instrumentation") == written
    expected = computed("agent", "__throughline_expected", **given)
    assert ("go_write" in expected) == (written["go_write"] == "auto")


@pytest.mark.parametrize(
    "name",
    ["shop", " shop.service", "shop@", "shop@1.service", r"a\x2db", "a/b", "a b", "", "a@b@c", "é"],
)
def test_names_of_services_are_judged_as_the_module_does(name: str) -> None:
    found = computed("agent", "__throughline_misnamed", throughline_node_services=[name])
    unit_name = plugin("module_utils.node").unit_name
    assert list(found) == ([] if unit_name(name.strip()) else [name.strip()])


class Tagged(str):
    """A decrypted text as ansible-core 2.19 has it; to_nice_yaml would write its ciphertext."""

    def __str__(self) -> str:
        return self


def test_texts_of_an_inline_vault_are_written_as_plain_text() -> None:
    config = {
        "services": [{"name": Tagged("shop")}],
        "export": {"otlp": {"headers": {"authorization": Tagged("token")}, "timeout": 2}},
    }
    configuration = plugin("filter.throughline_configuration").throughline_configuration
    written = configuration(config, ["observe"], [])
    assert written["export"] == {"otlp": {"headers": {"authorization": "token"}, "timeout": 2}}
    assert type(written["export"]["otlp"]["headers"]["authorization"]) is str
    assert type(written["services"][0]["name"]) is str
