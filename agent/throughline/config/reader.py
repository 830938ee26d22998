"""The reader of the configuration file and the environment: checked values, or problems.

It reads the YAML nodes, not the loaded document. So every problem has its line, a key that is given
twice is found, and `off` is still the word that the operator wrote.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from throughline.config import schema
from throughline.config.schema import SETTINGS, Kind, Setting

_QUOTED = re.compile(r"'[^'<][^']+'")  # but no single character, and no <token> of YAML
_BY_KEY = {setting.key: setting for setting in SETTINGS}


class ConfigError(ValueError):
    """The configuration cannot be used; `problems` has one line for each problem."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


@dataclass(frozen=True, slots=True)
class ServiceRule:
    """One entry of `services`. The glob `pattern` is compared with what `by` names."""

    by: str  # "systemd_unit" | "cgroup"
    pattern: str
    name: str | None
    trace: bool
    parents: str | None = None  # "proven" | "likely"; None: propagation.parents decides


class Reader:
    """The values and problems of one file and one environment."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.problems: list[str] = []
        self.values: dict[str, tuple[Any, str]] = {}  # key -> value, source
        self.rules: list[ServiceRule] = []

    def value(self, key: str) -> Any:
        """The value of a setting, or its default."""
        found = self.values.get(key)
        return _BY_KEY[key].default if found is None else found[0]

    def source(self, key: str) -> str:
        """Where the value comes from: `default`, `file` or `environment NAME`."""
        found = self.values.get(key)
        return "default" if found is None else found[1]

    def complain(self, node: yaml.Node, key: str, found: str, expected: str) -> None:
        """Adds a problem at the line of a node."""
        line = node.start_mark.line + 1
        self.problems.append(f"{self.path}:{line}: {key}: {found}; expected {expected}")

    def read(self, text: str) -> None:
        """Reads the text of the file."""
        try:
            root = yaml.compose(text, Loader=yaml.SafeLoader)
        except yaml.YAMLError as error:
            mark = getattr(error, "problem_mark", None)
            where = f":{mark.line + 1}" if mark is not None else ""
            problem = getattr(error, "problem", None) or str(error).splitlines()[0]
            # it quotes a value that begins with * or !, which may be a credential
            problem = _QUOTED.sub("…", problem)
            self.problems.append(f"{self.path}{where}: not valid YAML: {problem}")
            return
        except RecursionError:
            self.problems.append(f"{self.path}: not valid YAML: nested too deeply")
            return
        if root is not None and not _is_null(root):
            self._section(root, "")

    def _section(self, node: yaml.Node, prefix: str) -> None:
        allowed = _children(prefix)
        kind = schema.SECRET if prefix.startswith("export.otlp.") else None
        for name, value, key_node in self._pairs(node, prefix, sorted(allowed), kind=kind):
            key = f"{prefix}{name}"
            if name not in allowed:
                self.complain(key_node, key, "unknown key", f"one of {', '.join(sorted(allowed))}")
            elif key == "services":
                self._services(value)
            elif key in _BY_KEY:
                self._leaf(value, _BY_KEY[key])
            elif not _is_null(value):
                self._section(value, f"{key}.")

    def _pairs(
        self, node: yaml.Node, key: str, allowed: list[str], *, kind: Kind | None = None
    ) -> Iterator[tuple[str, yaml.Node, yaml.Node]]:
        if not isinstance(node, yaml.MappingNode):
            expected = f"a mapping with keys {', '.join(allowed)}" if allowed else "a mapping"
            found = f"found {_describe(node, kind)}"
            self.complain(node, key.rstrip(".") or "the file", found, expected)
            return
        seen: set[str] = set()
        for number, (key_node, value_node) in enumerate(node.value):
            name = key_node.value if isinstance(key_node, yaml.ScalarNode) else _describe(key_node)
            if name in seen:
                shown = _shown_key(key, name, number, kind)
                self.complain(key_node, shown, "given twice", "each key once")
                continue
            seen.add(name)
            yield name, value_node, key_node

    def _leaf(self, node: yaml.Node, setting: Setting) -> None:
        value = self._typed(node, setting.key, setting.kind)
        if value is not None:
            self.values[setting.key] = (value, "file")

    def _typed(self, node: yaml.Node, key: str, kind: Kind) -> Any:
        if kind.tags == ("map",):
            return self._mapping(node, key, kind)
        if kind.items is not None:
            return self._list(node, key, kind, kind.items)
        tag = node.tag.rpartition(":")[2]
        if not isinstance(node, yaml.ScalarNode) or tag not in kind.tags:
            self.complain(node, key, f"found {_describe(node, kind)}", kind.expects)
            return None
        try:
            return kind.parse(node.value)
        except ValueError as error:
            self.complain(node, key, f"found {_describe(node, kind)}", _expected(kind, error))
            return None

    def _mapping(self, node: yaml.Node, key: str, kind: Kind) -> dict[str, str] | None:
        pairs: dict[str, str] = {}
        items = schema.SECRET if kind is schema.HEADERS else schema.TEXT
        for number, (name, value, _) in enumerate(self._pairs(node, f"{key}.", [], kind=kind)):
            shown = _shown_key(f"{key}.", name, number, kind)
            text = self._typed(value, shown, items)
            if text is None:
                continue
            if kind is schema.HEADERS:
                try:
                    schema.check_header(name, text)
                except ValueError as error:
                    self.complain(value, shown, str(error), "a valid HTTP header")
                name = name.lower()
            pairs[name] = text
        return pairs

    def _list(self, node: yaml.Node, key: str, kind: Kind, items: Kind) -> tuple[Any, ...] | None:
        if not isinstance(node, yaml.SequenceNode):
            self.complain(node, key, f"found {_describe(node)}", kind.expects)
            return None
        found = [self._typed(item, f"{key}[{n}]", items) for n, item in enumerate(node.value)]
        return tuple(dict.fromkeys(value for value in found if value is not None))

    def _services(self, node: yaml.Node) -> None:
        if not isinstance(node, yaml.SequenceNode):
            self.complain(node, "services", f"found {_describe(node)}", "a list of rules")
            return
        if not node.value:
            self.complain(
                node, "services", "an empty list", "a rule, or no key at all to trace every unit"
            )
        for number, item in enumerate(node.value):
            rule = self._rule(item, f"services[{number}]")
            if rule is not None:
                self.rules.append(rule)
        self.values["services"] = (self.rules, "file")

    def _rule(self, node: yaml.Node, key: str) -> ServiceRule | None:
        allowed = ["match", "name", "parents", "trace"]
        found: dict[str, Any] = {}
        match: tuple[str, str] | None = None
        count = len(self.problems)
        for name, value, key_node in self._pairs(node, f"{key}.", allowed):
            if name == "match":
                match = self._match(value, f"{key}.match")
            elif name == "name":
                found["name"] = self._typed(value, f"{key}.name", schema.TEXT)
            elif name == "parents":
                found["parents"] = self._typed(value, f"{key}.parents", schema.PARENTS)
            elif name == "trace":
                found["trace"] = self._typed(value, f"{key}.trace", schema.BOOLEAN)
            else:
                expected = f"one of {', '.join(allowed)}"
                self.complain(key_node, f"{key}.{name}", "unknown key", expected)
        if match is None:
            if len(self.problems) == count:
                expected = "match: {systemd_unit: GLOB} or match: {cgroup: GLOB}"
                self.complain(node, key, "no match", expected)
            return None
        return ServiceRule(
            *match,
            name=found.get("name"),
            trace=found.get("trace", True),
            parents=found.get("parents"),
        )

    def _match(self, node: yaml.Node, key: str) -> tuple[str, str] | None:
        allowed = ["cgroup", "systemd_unit"]
        found: list[tuple[str, str]] = []
        count = len(self.problems)
        for name, value, key_node in self._pairs(node, f"{key}.", allowed):
            if name not in allowed:
                expected = f"one of {', '.join(allowed)}"
                self.complain(key_node, f"{key}.{name}", "unknown key", expected)
                continue
            text = self._typed(value, f"{key}.{name}", schema.TEXT)
            if text is not None:
                found.append((name, text.strip("/") if name == "cgroup" else text))
        if len(self.problems) > count:
            return None
        if len(found) != 1:
            self.complain(node, key, f"{len(found)} keys", "exactly one of systemd_unit, cgroup")
            return None
        return found[0]

    def read_environment(self, environment: Mapping[str, str]) -> None:
        """Reads the variables, whose values replace those of the file."""
        wrong: set[str] = set()
        for setting in SETTINGS:
            for variable, kind in setting.variables:
                text = environment.get(variable, "").strip()
                if not text:  # the specification: empty is the same as unset
                    continue
                try:
                    value = kind.parse(text)
                except ValueError as error:
                    if variable in wrong:  # one variable can be for two settings
                        break
                    wrong.add(variable)
                    shown = f"found {text!r}"
                    if kind is schema.HEADERS:
                        shown = "its value"
                    elif kind is schema.ENDPOINT:
                        shown = f"found {schema.shown_endpoint(text)!r}"
                    self.problems.append(
                        f"environment variable {variable} ({setting.key}): {shown}; "
                        f"expected {_expected(kind, error)}"
                    )
                    break
                if isinstance(value, dict):  # merged key by key, the environment wins
                    value = {**(self.value(setting.key) or {}), **value}
                self.values[setting.key] = (value, f"environment {variable}")
                break


def _children(prefix: str) -> set[str]:
    names = {key[len(prefix) :].split(".")[0] for key in _BY_KEY if key.startswith(prefix)}
    return names if prefix else names | {"services"}


def _is_null(node: yaml.Node) -> bool:
    return node.tag.endswith(":null")


def _shown_key(prefix: str, name: str, number: int, kind: Kind | None) -> str:
    """A key path. A word that is no header name may hold a credential: its number stands for it."""
    if kind is schema.HEADERS and not schema.is_header_name(name):
        return f"{prefix.removesuffix('.')}[{number}]"
    return f"{prefix}{name}"


def _describe(node: yaml.Node, kind: Kind | None = None) -> str:
    """The value that was found, for a problem. Values of headers are not shown."""
    if isinstance(node, yaml.MappingNode):
        return "a mapping"
    if isinstance(node, yaml.SequenceNode):
        return "a list"
    names = {"str": "text", "int": "integer", "float": "number", "bool": "boolean"}
    tag = node.tag.rpartition(":")[2]
    if tag == "null":
        return "nothing"
    name = names.get(tag, "other")
    if kind in (schema.HEADERS, schema.SECRET):
        return f"a value ({name}) that is not shown"
    value = schema.shown_endpoint(node.value) if kind is schema.ENDPOINT else node.value
    return f"{value!r} ({name})"


def _expected(kind: Kind, error: ValueError) -> str:
    # Python's own conversion errors say nothing to an operator.
    detail = str(error)
    own = detail and not detail.startswith(("could not convert", "invalid literal", "Port "))
    return f"{kind.expects} ({detail})" if own else kind.expects
