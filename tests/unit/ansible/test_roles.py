"""The roles' interface: every variable has a default, a type and a description, and one meaning."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.fixtures.paths import CHECKOUT
from throughline.config.schema import SETTINGS

ROLES = ("agent", "capabilities", "mounts", "preflight")
TYPES = {"str", "int", "float", "bool", "list", "dict", "path", "raw"}


def load(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def defaults(role: str) -> dict[str, Any]:
    path = CHECKOUT / "roles" / role / "defaults/main.yml"
    content: dict[str, Any] = load(path) if path.exists() else {}
    return content


def options(role: str) -> dict[str, Any]:
    specs = load(CHECKOUT / "roles" / role / "meta/argument_specs.yml")["argument_specs"]
    assert list(specs) == ["main"]
    content: dict[str, Any] = specs["main"]["options"]
    return content


def leaves(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every option that has no options of its own, by its dotted path."""
    for name, option in tree.items():
        if "options" in option:
            yield from leaves(option["options"], f"{prefix}{name}.")
        else:
            yield prefix + name, option


def nodes(tree: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for name, option in tree.items():
        yield name, option
        yield from nodes(option.get("options", {}))


def test_the_roles_are_all_here() -> None:
    assert sorted(path.name for path in (CHECKOUT / "roles").iterdir() if path.is_dir()) == list(
        ROLES
    )


@pytest.mark.parametrize("role", ROLES)
def test_argument_specs_and_defaults_are_the_same(role: str) -> None:
    specified = {name: option["default"] for name, option in options(role).items()}
    assert specified == defaults(role)


@pytest.mark.parametrize("role", ROLES)
def test_every_variable_is_typed_and_described(role: str) -> None:
    for name, option in nodes(options(role)):
        assert option.get("type") in TYPES, name
        assert option.get("description"), name
        if option["type"] == "list":
            assert option.get("elements") in TYPES, name


@pytest.mark.parametrize("role", ROLES)
def test_public_names_are_the_projects_and_private_ones_are_marked(role: str) -> None:
    assert all(name.startswith("throughline_") for name in defaults(role))
    variables = CHECKOUT / "roles" / role / "vars/main.yml"
    if variables.exists():
        assert all(name.startswith("__throughline_") for name in load(variables))


def test_a_variable_means_the_same_in_every_role() -> None:
    seen: dict[str, Any] = {}
    for role in ROLES:
        for name, value in defaults(role).items():
            assert seen.setdefault(name, value) == value, name


def test_the_configuration_has_exactly_the_keys_that_the_agent_reads() -> None:
    tree = dict(options("agent")["throughline_config"]["options"])
    del tree["services"]  # a list, which the agent reads by itself
    assert {path for path, _ in leaves(tree)} == {setting.key for setting in SETTINGS}


def test_choices_of_the_configuration_are_the_agents() -> None:
    expects = {setting.key: setting.kind.expects for setting in SETTINGS}
    expects["services.parents"] = expects["propagation.parents"]  # of a rule
    for path, option in leaves(options("agent")["throughline_config"]["options"]):
        if "choices" in option:
            assert expects[path] == "one of " + ", ".join(option["choices"])


def test_playbooks_use_only_documented_variables() -> None:
    documented = set((CHECKOUT / "docs/operator/roles.md").read_text(encoding="utf-8").split("`"))
    used: set[str] = set()
    for folder in ("roles", "playbooks"):
        for path in (CHECKOUT / folder).rglob("*"):
            if path.suffix in (".yml", ".j2"):
                text = path.read_text(encoding="utf-8")
                # Names of modules, roles and facts are qualified or are not variables.
                used.update(re.findall(r"(?<![\w.])throughline_[a-z0-9_]+", text))
    assert used - documented == set()


def test_collection_and_package_have_the_same_version() -> None:
    package = (CHECKOUT / "pyproject.toml").read_text(encoding="utf-8")
    match = re.search(r'^version = "(.+)"$', package, re.MULTILINE)
    assert match is not None
    assert load(CHECKOUT / "galaxy.yml")["version"] == match[1]


def test_a_checkout_is_its_own_collection() -> None:
    link = CHECKOUT / ".ansible/collections/ansible_collections/throughline/fleet"
    assert link.resolve() == CHECKOUT
