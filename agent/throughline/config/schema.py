"""The table of settings: key path, kind of value, default and environment variables of each.

It is the whole interface of the configuration file, except the list `services`, which
`config/reader.py` reads. A value comes from the file (a YAML scalar or mapping) or from the
environment (a string). The same parser reads both.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

SAMPLERS = (
    "always_on",
    "always_off",
    "traceidratio",
    "parentbased_always_on",
    "parentbased_always_off",
    "parentbased_traceidratio",
)
PROTOCOLS = ("http/protobuf", "grpc")
COMPRESSIONS = ("none", "gzip")
DEFAULT_HTTP_ENDPOINT = "http://127.0.0.1:4318"
DEFAULT_GRPC_ENDPOINT = "http://127.0.0.1:4317"

_SIZE = re.compile(r"(\d+)\s*(B|KiB|MiB|GiB|kB|KB|MB|GB|K|M|G)?")
_SIZE_UNITS = {
    "B": 1,
    "K": 1 << 10,
    "KiB": 1 << 10,
    "M": 1 << 20,
    "MiB": 1 << 20,
    "G": 1 << 30,
    "GiB": 1 << 30,
    "kB": 10**3,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
}
_MAPPED = ipaddress.IPv6Network("::ffff:0:0/96")  # IPv4 in IPv6, RFC 4291 section 2.5.5.2
_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of value: what an operator may write, and how it is parsed.

    `tags` are the YAML types that the file may have. `parse` gets the text as it is written and
    raises ValueError, whose message (if any) is appended to the problem. A list is parsed item by
    item with the kind `items`, so that a problem has the line of the item.
    """

    expects: str
    tags: tuple[str, ...]
    parse: Callable[[str], Any]
    items: Kind | None = None


Network = ipaddress.IPv4Network | ipaddress.IPv6Network


def _boolean(text: str) -> bool:
    word = text.lower()
    if word in ("true", "yes", "on"):
        return True
    if word in ("false", "no", "off"):
        return False
    raise ValueError


def _number(low: float, high: float) -> Callable[[str], float]:
    def parse(text: str) -> float:
        value = float(text)
        if not low <= value <= high:
            raise ValueError
        return value

    return parse


def _milliseconds(text: str) -> float:
    value = float(text)
    if not 100 <= value <= 600_000:
        raise ValueError("the OpenTelemetry specification gives this variable in milliseconds")
    return value / 1000


def parse_size(text: str) -> int:
    """The bytes of a size such as 65536, 64MiB or 1 GB. Raises ValueError."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise ValueError
    size = int(match[1]) * _SIZE_UNITS[match[2] or "B"]
    if size < 1 << 16:
        raise ValueError("less than 64KiB holds no batch")
    return size


def _endpoint(text: str) -> str:
    try:
        url = urlsplit(text if "://" in text else f"//{text}")
    except ValueError:  # its message quotes the value
        raise ValueError from None
    if url.scheme not in ("http", "https", "") or not url.hostname or url.query or url.fragment:
        raise ValueError
    if not url.scheme and (url.path or url.port is None):  # host:port, for grpc only
        raise ValueError
    _ = url.port  # ValueError when it is no number below 65536
    if url.username is not None or url.password is not None:
        raise ValueError("put credentials into headers, not into the URL")
    return text


def _path(text: str) -> Path:
    path = Path(text)
    if not path.is_absolute():
        raise ValueError
    return path


def _integer(low: int, high: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        value = int(text)
        if not low <= value <= high:
            raise ValueError
        return value

    return parse


def network(text: str) -> Network:
    """An IPv4 or IPv6 network, or one address. Raises ValueError, often with a hint."""
    try:
        found = ipaddress.ip_network(text)
    except ValueError as error:
        if "host bits" not in str(error):
            raise ValueError from None
        meant = ipaddress.ip_network(text, strict=False)
        address = text.partition("/")[0]
        raise ValueError(
            f"bits behind the prefix are set: {meant} for the network, {address} for that one host"
        ) from None
    if isinstance(found, ipaddress.IPv6Network):
        if "%" in text:
            raise ValueError("an address has no zone here")
        if found != _MAPPED and found.supernet_of(_MAPPED):
            raise ValueError("it holds every IPv4 address, too: 2000::/3 has all global IPv6 ones")
        if found.subnet_of(_MAPPED):
            low = int(found.network_address) & 0xFFFFFFFF
            return ipaddress.IPv4Network((low, found.prefixlen - 96))
    return found


def _networks(text: str) -> tuple[Network, ...]:
    return tuple(network(part.strip()) for part in text.split(",") if part.strip())


def _text(text: str) -> str:
    if not text or not text.isprintable():
        raise ValueError
    return text


def pairs(text: str) -> dict[str, str]:
    """`a=1,b=2`, values percent-encoded (W3C Baggage, as the OpenTelemetry variables want).

    Raises ValueError for a part that is not key=value.
    """
    found: dict[str, str] = {}
    for part in text.split(","):
        if not part.strip():
            continue
        key, separator, value = part.partition("=")
        if not separator or not key.strip():
            raise ValueError(f"{part.strip()!r} is not key=value")
        found[unquote(key.strip())] = unquote(value.strip())
    return found


def _headers(text: str) -> dict[str, str]:
    try:
        found = pairs(text)
    except ValueError:  # its message quotes the value
        raise ValueError("a part of it is not key=value") from None
    for name, value in found.items():
        check_header(name, value)
    return {name.lower(): value for name, value in found.items()}


def check_header(name: str, value: str) -> None:
    """Raises ValueError unless `name: value` can stand in an HTTP header (RFC 9110 section 5).

    The message has no value, and no word that is no header name: both may be credentials. It checks
    whatever the exporters would refuse, since their message has the whole header.
    """
    if not is_header_name(name):
        raise ValueError("a name in it is not a header name")
    if any(ord(c) < 32 or ord(c) == 127 for c in value):
        raise ValueError(f"the value of {name} has control characters")
    if not value.isascii():
        raise ValueError(f"the value of {name} has characters that are not ASCII")
    if value != value.strip():
        raise ValueError(f"the value of {name} begins or ends with white space")


def is_header_name(name: str) -> bool:
    return _HEADER_NAME.fullmatch(name) is not None


def shown_endpoint(text: str) -> str:
    """An endpoint that cannot be used, without the parts that may be credentials."""
    start, separator, rest = text.rpartition("@")
    if separator:
        scheme = start.partition("://")[0] + "://" if "://" in start else ""
        text = f"{scheme}(hidden)@{rest}"
    address = re.split(r"[?#]", text, maxsplit=1)[0]
    return address if address == text else f"{address}?(hidden)"


def _choice(*allowed: str) -> Kind:
    def parse(text: str) -> str:
        if text not in allowed:
            raise ValueError
        return text

    return Kind("one of " + ", ".join(allowed), ("str", "bool", "int", "float", "null"), parse)


PARENTS = _choice("proven", "likely")
SWITCH = _choice("auto", "off")  # of a feature group
BOOLEAN = Kind("true or false", ("bool",), _boolean)
RATIO = Kind("a number from 0 to 1", ("int", "float"), _number(0, 1))
SECONDS = Kind("seconds, a number from 0.1 to 600", ("int", "float"), _number(0.1, 600))
MILLISECONDS = Kind("milliseconds, a number from 100 to 600000", (), _milliseconds)
INTERVAL = Kind("seconds, a number from 1 to 3600", ("int", "float"), _number(1, 3600))
DRAIN = Kind("seconds, a number from 0.01 to 5", ("int", "float"), _number(0.01, 5))
PRIORITY = Kind("a number from 1 to 65535", ("int",), _integer(1, 65535))
# "int": YAML 1.1 takes 1:2:3:4:5:6:7:8 for a number to the base 60
NETWORK = Kind("a network such as 10.1.0.0/16 or fd00:1::/64", ("str", "int"), network)
NETWORKS = Kind("a list of networks", ("list",), _networks, NETWORK)
SIZE = Kind("a size of at least 64KiB such as 64MiB or 67108864", ("int", "str"), parse_size)
ENDPOINT = Kind("an http:// or https:// URL (for grpc also host:port)", ("str",), _endpoint)
PATH = Kind("an absolute path", ("str",), _path)
TEXT = Kind("a text (quote it if it looks like a number or a boolean)", ("str",), _text)
SECRET = Kind("a text (quote it)", ("str",), _text)  # is not shown in problems
HEADERS = Kind("a mapping of header names to texts", ("map",), _headers)
ATTRIBUTES = Kind("a mapping of attribute names to texts", ("map",), pairs)


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting. `variables` are in the environment, strongest first, each with its kind."""

    key: str
    kind: Kind
    default: Any
    variables: tuple[tuple[str, Kind], ...] = ()


def _otlp(prefix: str, infix: str, *, inherit: bool) -> list[Setting]:
    """The settings of one OTLP target. Those of one signal inherit the common ones where unset."""

    def setting(
        name: str, kind: Kind, default: Any, variable: str, *, in_environment: Kind | None = None
    ) -> Setting:
        names = ((f"OTEL_EXPORTER_OTLP_{infix}{variable}", in_environment or kind),)
        return Setting(f"{prefix}.{name}", kind, None if inherit else default, names)

    return [
        setting("endpoint", ENDPOINT, None, "ENDPOINT"),
        setting("protocol", _choice(*PROTOCOLS), "http/protobuf", "PROTOCOL"),
        setting("headers", HEADERS, {}, "HEADERS"),
        setting("timeout", SECONDS, 10.0, "TIMEOUT", in_environment=MILLISECONDS),
        setting("compression", _choice(*COMPRESSIONS), "none", "COMPRESSION"),
        setting("certificate", PATH, None, "CERTIFICATE"),
        setting("client_certificate", PATH, None, "CLIENT_CERTIFICATE"),
        setting("client_key", PATH, None, "CLIENT_KEY"),
        setting("insecure", BOOLEAN, None, "INSECURE"),
    ]


def _exporters(name: str) -> Kind:
    """OTEL_TRACES_EXPORTER and OTEL_METRICS_EXPORTER: a list that may have `name`."""

    def parse(text: str) -> bool:
        words = {word.strip() for word in text.split(",")}
        if not words <= {"otlp", "console", "none"} or ("none" in words and len(words) > 1):
            raise ValueError
        return name in words

    return Kind("none, or a list of otlp and console", (), parse)


SETTINGS: tuple[Setting, ...] = (
    Setting("propagation.headers", SWITCH, "auto"),
    Setting("propagation.limits", _choice("respect", "ignore"), "respect"),
    Setting("propagation.packets", SWITCH, "auto"),
    Setting("propagation.parents", PARENTS, "proven"),
    Setting("propagation.passed_on", _choice("update", "keep"), "update"),
    Setting("propagation.peers", NETWORKS, ()),
    Setting("propagation.tc.priority", PRIORITY, 49152),
    Setting("instrumentation.tls", SWITCH, "auto"),
    Setting("instrumentation.go", SWITCH, "auto"),
    Setting("instrumentation.go_write", SWITCH, "off"),
    Setting("instrumentation.java", SWITCH, "auto"),
    Setting("instrumentation.python", SWITCH, "auto"),
    Setting("instrumentation.proxies", SWITCH, "auto"),
    Setting("instrumentation.ruby", SWITCH, "auto"),
    Setting("instrumentation.node", SWITCH, "auto"),
    Setting(
        "sampling.sampler",
        _choice(*SAMPLERS),
        "parentbased_traceidratio",
        (("OTEL_TRACES_SAMPLER", _choice(*SAMPLERS)),),
    ),
    Setting("sampling.arg", RATIO, 1.0, (("OTEL_TRACES_SAMPLER_ARG", RATIO),)),
    Setting("export.otlp.enabled", BOOLEAN, True, (("OTEL_TRACES_EXPORTER", _exporters("otlp")),)),
    *_otlp("export.otlp", "", inherit=False),
    *_otlp("export.otlp.traces", "TRACES_", inherit=True),
    *_otlp("export.otlp.metrics", "METRICS_", inherit=True),
    Setting("export.console", BOOLEAN, False, (("OTEL_TRACES_EXPORTER", _exporters("console")),)),
    Setting(
        "export.spool.directory",
        PATH,
        Path("/var/lib/throughline/spool"),
        (("THROUGHLINE_SPOOL_DIRECTORY", PATH),),
    ),
    Setting("export.spool.max_bytes", SIZE, 64 << 20),
    Setting(
        "export.metrics.enabled", BOOLEAN, True, (("OTEL_METRICS_EXPORTER", _exporters("otlp")),)
    ),
    Setting(
        "export.metrics.interval",
        INTERVAL,
        60.0,
        (("OTEL_METRIC_EXPORT_INTERVAL", MILLISECONDS),),
    ),
    Setting("resource.attributes", ATTRIBUTES, {}, (("OTEL_RESOURCE_ATTRIBUTES", ATTRIBUTES),)),
    Setting("agent.bpffs", PATH, Path("/run/throughline-bpf"), (("THROUGHLINE_BPFFS", PATH),)),
    Setting(
        "agent.runtime_directory",
        PATH,
        Path("/run/throughline"),
        (("THROUGHLINE_RUNTIME_DIRECTORY", PATH),),
    ),
    Setting(
        "agent.state_directory",
        PATH,
        Path("/var/lib/throughline"),
        (("THROUGHLINE_STATE_DIRECTORY", PATH),),
    ),
    Setting("agent.drain_interval", DRAIN, 0.1),
)
