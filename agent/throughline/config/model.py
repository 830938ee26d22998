"""The checked configuration: the values of `/etc/throughline/config.yaml` and the environment.

`load` returns a frozen `Config`, or raises `ConfigError` with every problem that it has found. A
problem names the file and the line, the key path, the value, and the values that are allowed. The
environment is stronger than the file, and the file is stronger than the default.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from throughline.config import schema
from throughline.config.reader import ConfigError, Reader, ServiceRule
from throughline.config.schema import SETTINGS, Network

__all__ = ["Config", "ConfigError", "ServiceRule", "load", "path_from_environment"]

DEFAULT_PATH = Path("/etc/throughline/config.yaml")


@dataclass(frozen=True, slots=True)
class Sampling:
    sampler: str  # one of schema.SAMPLERS
    arg: float  # 0..1


@dataclass(frozen=True, slots=True)
class Propagation:
    """How the requests of a traced service carry its context."""

    parents: str  # "proven" | "likely": which evidence for a parent is enough
    passed_on: str  # "update" | "keep": the parent id of a traceparent that a proxy passes on
    limits: bool  # no header where it would carry a request over a usual limit of servers
    peers: tuple[Network, ...]  # TCP options are written to them, and read from them
    tc_priority: int  # 1..65535, of the filter where the kernel has no tcx


@dataclass(frozen=True, slots=True)
class OtlpTarget:
    """Where one signal goes. `endpoint` is complete: with the signal's path for http/protobuf."""

    endpoint: str
    protocol: str  # "http/protobuf" | "grpc"
    headers: Mapping[str, str]
    timeout: float  # seconds
    compression: str  # "none" | "gzip"
    certificate: Path | None
    client_certificate: Path | None
    client_key: Path | None
    insecure: bool


@dataclass(frozen=True, slots=True)
class Export:
    otlp: bool
    traces: OtlpTarget
    metrics: OtlpTarget
    console: bool
    spool_directory: Path
    spool_max_bytes: int
    metrics_enabled: bool
    metrics_interval: float  # seconds


@dataclass(frozen=True, slots=True)
class Agent:
    bpffs: Path
    runtime_directory: Path
    state_directory: Path
    drain_interval: float  # seconds

    @property
    def status_path(self) -> Path:
        return self.runtime_directory / "status.json"

    @property
    def contradictions_path(self) -> Path:
        return self.state_directory / "contradictions.json"


@dataclass(frozen=True, slots=True)
class Effective:
    """One effective value and where it came from: `default`, `file` or `environment NAME`."""

    key: str
    value: Any
    source: str


@dataclass(frozen=True, slots=True)
class Config:
    path: Path
    services: tuple[ServiceRule, ...]  # empty: every unit in system.slice
    propagation: Propagation
    switches: frozenset[str]  # keys of feature groups that are `auto`, such as instrumentation.tls
    sampling: Sampling
    export: Export
    resource_attributes: Mapping[str, str]
    agent: Agent
    effective: tuple[Effective, ...]


def path_from_environment(environment: Mapping[str, str] | None = None) -> Path:
    """The file that is read when the command line names none."""
    found = (os.environ if environment is None else environment).get("THROUGHLINE_CONFIG")
    return Path(found) if found else DEFAULT_PATH


def default_status_path(environment: Mapping[str, str] | None = None) -> Path:
    """Where the status file is when the configuration cannot be read."""
    found = (os.environ if environment is None else environment).get(
        "THROUGHLINE_RUNTIME_DIRECTORY"
    )
    return Path(found or "/run/throughline") / "status.json"


def load(
    path: Path, *, environment: Mapping[str, str] | None = None, must_exist: bool = False
) -> Config:
    """Read and check the file at `path` and the environment; raises ConfigError.

    A missing file means defaults at the default path; anywhere else, and with `must_exist`, it is
    an error, since somebody named it.
    """
    environment = os.environ if environment is None else environment
    reader = Reader(path)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        if must_exist or path != DEFAULT_PATH:
            raise ConfigError([f"{path}: no such file"]) from None
        text = ""
    except OSError as error:
        raise ConfigError([f"{path}: cannot be read: {error.strerror}"]) from error
    except UnicodeDecodeError as error:
        raise ConfigError([f"{path}: is not UTF-8 at byte {error.start}"]) from error
    reader.read(text)
    reader.read_environment(environment)
    config = None if reader.problems else _assemble(reader)
    if config is None or reader.problems:
        raise ConfigError(reader.problems)
    return config


def _assemble(reader: Reader) -> Config:
    get = reader.value
    return Config(
        path=reader.path,
        services=tuple(reader.rules),
        propagation=Propagation(
            parents=get("propagation.parents"),
            limits=get("propagation.limits") == "respect",
            passed_on=get("propagation.passed_on"),
            peers=get("propagation.peers"),
            tc_priority=get("propagation.tc.priority"),
        ),
        switches=frozenset(
            setting.key
            for setting in SETTINGS
            if setting.kind is schema.SWITCH and get(setting.key) == "auto"
        ),
        sampling=Sampling(sampler=get("sampling.sampler"), arg=get("sampling.arg")),
        export=Export(
            otlp=get("export.otlp.enabled"),
            traces=_target(reader, "traces"),
            metrics=_target(reader, "metrics"),
            console=get("export.console"),
            spool_directory=get("export.spool.directory"),
            spool_max_bytes=get("export.spool.max_bytes"),
            metrics_enabled=get("export.metrics.enabled"),
            metrics_interval=get("export.metrics.interval"),
        ),
        resource_attributes=get("resource.attributes"),
        agent=Agent(
            bpffs=get("agent.bpffs"),
            runtime_directory=get("agent.runtime_directory"),
            state_directory=get("agent.state_directory"),
            drain_interval=get("agent.drain_interval"),
        ),
        effective=tuple(_effective(reader)),
    )


def _target(reader: Reader, signal: str) -> OtlpTarget:
    """The OTLP target of a signal: its own settings, else the common ones."""

    def get(name: str) -> Any:
        own = reader.value(f"export.otlp.{signal}.{name}")
        return reader.value(f"export.otlp.{name}") if own is None else own

    protocol = get("protocol")
    own_endpoint = reader.value(f"export.otlp.{signal}.endpoint")
    common = reader.value("export.otlp.endpoint")
    if protocol == "grpc":
        endpoint = own_endpoint or common or schema.DEFAULT_GRPC_ENDPOINT
    else:
        base = (common or schema.DEFAULT_HTTP_ENDPOINT).rstrip("/")
        endpoint = own_endpoint or f"{base}/v1/{signal}"
        if "://" not in endpoint:
            reader.problems.append(
                f"{reader.path}: export.otlp.endpoint: found {common or own_endpoint!r}; "
                "expected http:// or https:// in front, since the protocol is http/protobuf"
            )
    target = OtlpTarget(
        endpoint=endpoint,
        protocol=protocol,
        headers=get("headers"),
        timeout=get("timeout"),
        compression=get("compression"),
        certificate=get("certificate"),
        client_certificate=get("client_certificate"),
        client_key=get("client_key"),
        # The scheme decides; `insecure` is for grpc endpoints without one (OTLP exporter spec).
        insecure=endpoint.startswith("http://")
        or ("://" not in endpoint and get("insecure") is True),
    )
    for name in ("certificate", "client_certificate", "client_key"):
        path = getattr(target, name)
        if path is not None and not os.access(path, os.R_OK):
            reader.problems.append(
                f"{reader.path}: export.otlp.{name}: {path} cannot be read; "
                "expected a PEM file that the agent's user may read"
            )
    if (target.client_certificate is None) != (target.client_key is None):
        reader.problems.append(
            f"{reader.path}: export.otlp: client_certificate and client_key; expected both or none"
        )
    return target


def _effective(reader: Reader) -> Iterator[Effective]:
    rules = [
        {"match": {rule.by: rule.pattern}, "name": rule.name, "trace": rule.trace}
        for rule in reader.rules
    ]
    yield Effective("services", rules or "every unit in system.slice", reader.source("services"))
    for setting in SETTINGS:
        value = reader.value(setting.key)
        if value is None and setting.key.startswith(("export.otlp.traces", "export.otlp.metrics")):
            continue  # inherited: shown once, where it is set
        if setting.key == "export.otlp.endpoint" and value is None:
            grpc = reader.value("export.otlp.protocol") == "grpc"
            value = schema.DEFAULT_GRPC_ENDPOINT if grpc else schema.DEFAULT_HTTP_ENDPOINT
        if setting.kind is schema.HEADERS and value:  # they carry API keys
            value = dict.fromkeys(value, "(hidden)")
        if isinstance(value, Path):
            value = str(value)
        if setting.kind.items is not None:
            value = [str(item) for item in value]
        yield Effective(setting.key, value, reader.source(setting.key))
