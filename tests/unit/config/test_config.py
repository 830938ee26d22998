from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from throughline.config import model
from throughline.config.model import Config, ConfigError, ServiceRule

FULL = """
services:
  - match: {systemd_unit: "shop-*.service"}
    name: shop
  - match: {systemd_unit: "sshd.service"}
    trace: false
  - match: {cgroup: /machine.slice/*.scope}
propagation:
  headers: off
  packets: off
  peers: [10.1.0.0/16, 10.2.0.3, "fd00:1::/64", "::ffff:10.3.0.0/112", 10.1.0.0/16]
  tc: {priority: 2}
instrumentation: {tls: off, go_write: off, java: off, ruby: off, node: off}
sampling: {sampler: traceidratio, arg: 0.25}
export:
  otlp:
    endpoint: "https://collector.example:4318/otlp/"
    protocol: http/protobuf
    headers: {X-Key: "secret"}
    timeout: 3
    compression: gzip
    metrics: {endpoint: "http://metrics.example/write", headers: {}}
  console: true
  spool: {directory: /srv/spool, max_bytes: 1GiB}
  metrics: {enabled: false, interval: 10}
resource: {attributes: {deployment.environment.name: test}}
agent: {bpffs: /run/b, runtime_directory: /run/t, state_directory: /srv/t, drain_interval: 0.05}
"""


def load(tmp_path: Path, text: str, **environment: str) -> Config:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    return model.load(path, environment=environment)


def problems(tmp_path: Path, text: str, **environment: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text, **environment)
    prefix = f"{tmp_path / 'config.yaml'}:"
    return [problem.removeprefix(prefix).strip() for problem in caught.value.problems]


def sources(found: Config) -> dict[str, str]:
    return {effective.key: effective.source for effective in found.effective}


def test_no_file_is_a_useful_configuration() -> None:
    found = model.load(model.DEFAULT_PATH, environment={})
    assert found.services == ()
    assert found.switches == {
        "propagation.headers",
        "propagation.packets",
        "instrumentation.tls",
        "instrumentation.go",
        "instrumentation.java",
        "instrumentation.node",
        "instrumentation.python",
        "instrumentation.proxies",
        "instrumentation.ruby",
    }
    assert (found.propagation.peers, found.propagation.tc_priority) == ((), 49152)
    assert (found.sampling.sampler, found.sampling.arg) == ("parentbased_traceidratio", 1.0)
    assert found.export.traces.endpoint == "http://127.0.0.1:4318/v1/traces"
    assert found.export.metrics.endpoint == "http://127.0.0.1:4318/v1/metrics"
    assert found.export.traces.insecure
    assert found.export.spool_max_bytes == 64 << 20
    assert set(sources(found).values()) == {"default"}


@pytest.mark.parametrize("text", ["", "# nothing\n", "{}", "null", "export:\n", "sampling: {}"])
def test_an_empty_file_is_the_same(tmp_path: Path, text: str) -> None:
    found = load(tmp_path, text)
    assert found.effective == model.load(model.DEFAULT_PATH, environment={}).effective


def test_every_key(tmp_path: Path) -> None:
    found = load(tmp_path, FULL)
    assert found.services == (
        ServiceRule("systemd_unit", "shop-*.service", "shop", True),
        ServiceRule("systemd_unit", "sshd.service", None, False),
        ServiceRule("cgroup", "machine.slice/*.scope", None, True),
    )
    assert found.switches == {
        "instrumentation.go",
        "instrumentation.python",
        "instrumentation.proxies",
    }, "off is a word here, not a boolean"
    networks = ("10.1.0.0/16", "10.2.0.3/32", "fd00:1::/64", "10.3.0.0/16")
    assert tuple(map(str, found.propagation.peers)) == networks
    assert found.propagation.tc_priority == 2
    shown = {effective.key: effective.value for effective in found.effective}
    assert shown["propagation.peers"] == list(networks)
    assert (found.sampling.sampler, found.sampling.arg) == ("traceidratio", 0.25)
    traces, metrics = found.export.traces, found.export.metrics
    assert traces.endpoint == "https://collector.example:4318/otlp/v1/traces"
    assert metrics.endpoint == "http://metrics.example/write"
    assert (traces.headers, metrics.headers) == ({"x-key": "secret"}, {})
    assert (traces.timeout, traces.compression, traces.insecure) == (3.0, "gzip", False)
    assert found.export.console
    assert found.export.spool_directory == Path("/srv/spool")
    assert found.export.spool_max_bytes == 1 << 30
    assert (found.export.metrics_enabled, found.export.metrics_interval) == (False, 10.0)
    assert found.resource_attributes == {"deployment.environment.name": "test"}
    assert found.agent.bpffs == Path("/run/b")
    assert found.agent.status_path == Path("/run/t/status.json")
    assert found.agent.contradictions_path == Path("/srv/t/contradictions.json")
    assert found.agent.drain_interval == 0.05
    assert sources(found)["sampling.arg"] == "file"
    assert sources(found)["export.otlp.certificate"] == "default"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("colour: red", "1: colour: unknown key; expected one of agent, export, instru"),
        ("agent: {color: 1}", "1: agent.color: unknown key; expected one of bpffs, drain_interval"),
        ("\n\nsampling: {arg: high}", "3: sampling.arg: found 'high' (text); expected a number"),
        ("sampling: {arg: 1.5}", "1: sampling.arg: found '1.5' (number); expected a number from 0"),
        ("sampling: {arg: .nan}", "1: sampling.arg: found '.nan' (number); expected a number"),
        ("sampling: {arg: null}", "1: sampling.arg: found nothing; expected a number from 0 to 1"),
        ("sampling: {sampler: xray}", "1: sampling.sampler: found 'xray' (text); expected one of"),
        ("sampling: [1]", "1: sampling: found a list; expected a mapping with keys arg, sampler"),
        ("sampling: {}\nsampling: {}", "2: sampling: given twice; expected each key once"),
        ("propagation: {headers: maybe}", "1: propagation.headers: found 'maybe' (text); expected"),
        (
            "propagation: {tc: {priority: 0}}",
            "found '0' (integer); expected a number from 1 to 655",
        ),
        ("propagation: {tc: {priority: 1.5}}", "propagation.tc.priority: found '1.5' (number)"),
        ("propagation: {peers: 10.1.0.0/16}", "1: propagation.peers: found '10.1.0.0/16' (text); "),
        ("propagation: {peers: {a: b}}", "propagation.peers: found a mapping; expected a list of"),
        (
            "propagation:\n  peers:\n  - 10.1.0.0/16\n  - 10.1.0.7/16",
            "4: propagation.peers[1]: found '10.1.0.7/16' (text); expected a network such as "
            "10.1.0.0/16 or fd00:1::/64 (bits behind the prefix are set: 10.1.0.0/16 for the "
            "network, 10.1.0.7 for that one host)",
        ),
        ("propagation: {peers: ['fd00:1::7/64']}", "set: fd00:1::/64 for the network, fd00:1::7"),
        ("propagation: {peers: ['::/0']}", "it holds every IPv4 address, too: 2000::/3 has all"),
        ("propagation: {peers: ['fe80::1%eth0']}", "(an address has no zone here)"),
        ("propagation: {peers: [web1.example.net]}", "peers[0]: found 'web1.example.net' (text)"),
        ("propagation: {peers: [10.1.0.0/33, 7, [], null]}", "peers[0]: found '10.1.0.0/33'"),
        ("instrumentation: {tls: maybe}", "instrumentation.tls: found 'maybe' (text); expected on"),
        ("export: {console: 1}", "1: export.console: found '1' (integer); expected true or false"),
        ("export: {console: 'yes'}", "1: export.console: found 'yes' (text); expected true or"),
        (
            "export: {otlp: {endpoint: 'ftp://x'}}",
            "1: export.otlp.endpoint: found 'ftp://x' (text)",
        ),
        ("export: {otlp: {endpoint: 'http://x:99999'}}", "1: export.otlp.endpoint: found"),
        ("export: {otlp: {endpoint: 'http://u:p@x'}}", "(put credentials into headers"),
        ("export: {otlp: {endpoint: 'x:4317'}}", "expected http:// or https:// in front"),
        ("export: {otlp: {protocol: http/json}}", "expected one of http/protobuf, grpc"),
        ("export: {otlp: {timeout: 0}}", "expected seconds, a number from 0.1 to 600"),
        (
            "export: {otlp: {headers: {a: 1}}}",
            "1: export.otlp.headers.a: found a value (integer) that is not shown",
        ),
        (
            "export: {otlp: {headers: {'a b': x}}}",
            "1: export.otlp.headers[0]: a name in it is not a header name",
        ),
        (
            "export: {otlp: {headers: a=b}}",
            "1: export.otlp.headers: found a value (text) that is not shown; expected a",
        ),
        ("export: {otlp: {certificate: /no/such}}", "export.otlp.certificate: /no/such cannot be"),
        ("export: {otlp: {client_key: /etc/hostname}}", "client_certificate and client_key"),
        ("export: {spool: {max_bytes: 64 MB/s}}", "expected a size of at least 64KiB such as"),
        ("export: {spool: {max_bytes: 1KiB}}", "(less than 64KiB holds no batch)"),
        ("export: {spool: {directory: spool}}", "1: export.spool.directory: found 'spool' (text)"),
        ("services: shop", "1: services: found 'shop' (text); expected a list of rules"),
        ("services: []", "1: services: an empty list; expected a rule, or no key at all"),
        ("services:\n- name: x", "2: services[0]: no match; expected match: {systemd_unit: GLOB}"),
        (
            "services:\n- match: {unit: x}",
            "2: services[0].match.unit: unknown key; expected one of",
        ),
        ("services:\n- match: {cgroup: a, systemd_unit: b}", "services[0].match: 2 keys; expected"),
        ("services:\n- match: {cgroup: a}\n  nam: x", "3: services[0].nam: unknown key; expected"),
        ("services:\n- match: {cgroup: a}\n  name: 3", "3: services[0].name: found '3' (integer)"),
        ("services:\n- [a]", "2: services[0]: found a list; expected a mapping with keys match"),
        ("resource: {attributes: {a: true}}", "1: resource.attributes.a: found 'true' (boolean)"),
        ("just text", "1: the file: found 'just text' (text); expected a mapping with keys agent"),
        ("a: [", "1: not valid YAML: "),
        ("a: 1\n\tb: 2", "2: not valid YAML: "),
        ("a: \x00", "not valid YAML: "),
        ("a: &x {b: *x}", "unknown key"),
        ("--- {}\n--- {}", "not valid YAML: "),
    ],
)
def test_what_is_wrong_is_said(tmp_path: Path, text: str, expected: str) -> None:
    found = problems(tmp_path, text)
    assert any(expected in problem for problem in found), found


def test_all_problems_are_said_at_once(tmp_path: Path) -> None:
    text = "a: 1\nsampling: {arg: 2, sampler: x}\nservices: 3\n"
    found = problems(tmp_path, text, OTEL_TRACES_SAMPLER="y")
    assert [problem.split(":")[0] for problem in found[:4]] == ["1", "2", "2", "3"]
    assert found[4].startswith("environment variable OTEL_TRACES_SAMPLER (sampling.sampler): found")


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        (
            "OTEL_TRACES_SAMPLER",
            "jaeger_remote",
            "found 'jaeger_remote'; expected one of always_on",
        ),
        ("OTEL_TRACES_SAMPLER_ARG", "half", "found 'half'; expected a number from 0 to 1"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "collector", "found 'collector'; expected an http://"),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json", "expected one of http/protobuf, grpc"),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "10", "gives this variable in milliseconds"),
        ("OTEL_EXPORTER_OTLP_TRACES_COMPRESSION", "zstd", "expected one of none, gzip"),
        ("OTEL_EXPORTER_OTLP_HEADERS", "secret", "its value; expected a mapping"),
        ("OTEL_EXPORTER_OTLP_INSECURE", "maybe", "expected true or false"),
        ("OTEL_RESOURCE_ATTRIBUTES", "a", "'a' is not key=value"),
        ("OTEL_TRACES_EXPORTER", "zipkin", "expected none, or a list of otlp and console"),
        ("OTEL_METRIC_EXPORT_INTERVAL", "x", "expected milliseconds"),
        ("THROUGHLINE_BPFFS", "here", "expected an absolute path"),
    ],
)
def test_an_invalid_variable_is_named(tmp_path: Path, name: str, value: str, expected: str) -> None:
    (found,) = problems(tmp_path, "", **{name: value})
    assert found.startswith(f"environment variable {name} (")
    assert expected in found


def test_the_environment_wins_and_says_so(tmp_path: Path) -> None:
    found = load(
        tmp_path,
        FULL,
        OTEL_TRACES_SAMPLER="always_off",
        OTEL_EXPORTER_OTLP_ENDPOINT="http://base:1/",
        OTEL_EXPORTER_OTLP_METRICS_ENDPOINT="http://m:2/x",
        OTEL_EXPORTER_OTLP_HEADERS="X-Key=new,Other=a%20b",
        OTEL_EXPORTER_OTLP_TRACES_TIMEOUT="2500",
        OTEL_RESOURCE_ATTRIBUTES="team=a,deployment.environment.name=prod",
        OTEL_SERVICE_NAME="ignored",
        OTEL_METRICS_EXPORTER="otlp",
        OTEL_TRACES_EXPORTER="otlp",
        OTEL_EXPORTER_OTLP_PROTOCOL="",
        THROUGHLINE_RUNTIME_DIRECTORY="/run/other",
    )
    assert found.sampling.sampler == "always_off"
    assert found.export.traces.endpoint == "http://base:1/v1/traces"
    assert found.export.metrics.endpoint == "http://m:2/x"
    assert found.export.traces.headers == {"x-key": "new", "other": "a b"}
    assert (found.export.traces.timeout, found.export.metrics.timeout) == (2.5, 3.0)
    assert found.resource_attributes == {"team": "a", "deployment.environment.name": "prod"}
    assert not found.export.console
    assert found.export.metrics_enabled
    assert found.agent.runtime_directory == Path("/run/other")
    said = sources(found)
    assert said["sampling.sampler"] == "environment OTEL_TRACES_SAMPLER"
    assert said["sampling.arg"] == "file"
    assert said["export.otlp.protocol"] == "file", "an empty variable is the same as unset"


@pytest.mark.parametrize(
    ("variables", "endpoint", "insecure"),
    [
        ({}, "http://127.0.0.1:4317", True),
        ({"ENDPOINT": "collector:4317"}, "collector:4317", False),
        ({"ENDPOINT": "collector:4317", "INSECURE": "true"}, "collector:4317", True),
        ({"ENDPOINT": "https://c:4317", "INSECURE": "true"}, "https://c:4317", False),
        ({"ENDPOINT": "http://c:4317", "INSECURE": "false"}, "http://c:4317", True),
    ],
)
def test_grpc_endpoint(
    tmp_path: Path, variables: dict[str, str], endpoint: str, insecure: bool
) -> None:
    named = {f"OTEL_EXPORTER_OTLP_{name}": value for name, value in variables.items()}
    found = load(tmp_path, "export: {otlp: {protocol: grpc}}", **named).export.traces
    assert (found.endpoint, found.insecure) == (endpoint, insecure)


def test_secrets_are_not_shown(tmp_path: Path) -> None:
    found = load(tmp_path, FULL)
    assert "secret" not in str(found.effective)


@pytest.mark.parametrize(
    "text",
    [
        "export: {otlp: {headers: {x-key: 7345678}}}",
        "export: {otlp: {headers: {x-key: 7345678.5}}}",
        "export: {otlp: {headers: {x-key: 73-45-678}}}\nx: 1",
        "export: {otlp: {headers: {x-key: !mine 7345678}}}",
        "export: {otlp: {headers: {x-key: *a7345678}}}",
        "export: {otlp: {headers: {x-key: !<a7345678}}}",
        "export: {otlp: {headers: {x-key: '7345678\u00e9'}}}",
        "export: {otlp: {headers: {x-key: ' 7345678'}}}",
        'export: {otlp: {headers: {x-key: "7345678\\n"}}}',
        "export: {otlp: {headers: {'x-key: 7345678': }}}",
        "export: {otlp: {headers: {'x-key: 7345678': a, 'x-key: 7345678': a}}}",
        "export: {otlp: {headers: 'x-key=7345678'}}",
        "export: {otlp: {headers: [x-key=7345678]}}",
        "export: {otlp: {traces: {headers: {x-key: 7345678}}}}",
        "export: {otlp: 'x-key=7345678'}",
        "export: {otlp: {endpoint: 'http://me:7345678@x'}}",
        "export: {otlp: {endpoint: 'http://me:7345678/@a@x'}}",
        "export: {otlp: {endpoint: 'http://x?token=7345678'}}",
        "export: {otlp: {endpoint: 'me:7345678@x'}}",
        "export: {otlp: {endpoint: 'http://me:7345678@x\u2100'}}",
        "export: {otlp: {metrics: {endpoint: 'ftp://me:7345678@x'}}}",
    ],
)
def test_a_complaint_shows_no_credentials(tmp_path: Path, text: str) -> None:
    found = problems(tmp_path, text)
    assert found
    assert not any("345" in problem or "678" in problem for problem in found), found


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("HEADERS", "7345678"),
        ("HEADERS", "x-key 7345678=,a=b"),
        ("HEADERS", "x-key=7345678%0a"),
        ("TRACES_HEADERS", "x-key=%207345678"),
        ("ENDPOINT", "http://me:7345678@x"),
        ("METRICS_ENDPOINT", "http://x/#7345678"),
        ("ENDPOINT", "http://me:7345678@x\u2100"),
    ],
)
def test_a_complaint_of_the_environment_shows_no_credentials(
    tmp_path: Path, name: str, value: str
) -> None:
    found = problems(tmp_path, "", **{f"OTEL_EXPORTER_OTLP_{name}": value})
    assert found
    assert not any("345678" in problem for problem in found), found


def test_a_missing_file_is_an_error_where_it_was_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        model.load(tmp_path / "none.yaml", environment={})
    with pytest.raises(ConfigError, match="no such file"):
        model.load(model.DEFAULT_PATH, environment={}, must_exist=True)


def test_what_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Is a directory"):
        model.load(tmp_path, environment={})
    (tmp_path / "latin").write_bytes(b"a: \xff")
    with pytest.raises(ConfigError, match="not UTF-8 at byte 3"):
        model.load(tmp_path / "latin", environment={})


@pytest.mark.parametrize(
    ("text", "size"),
    [("67108864", 64 << 20), ("64MiB", 64 << 20), ("'1 GB'", 10**9), ("128K", 128 << 10)],
)
def test_sizes(tmp_path: Path, text: str, size: int) -> None:
    found = load(tmp_path, f"export: {{spool: {{max_bytes: {text}}}}}")
    assert found.export.spool_max_bytes == size


def test_a_file_is_data_only(tmp_path: Path) -> None:
    """No YAML tag may make an object."""
    text = "agent: {bpffs: !!python/object/apply:os.system ['touch /tmp/owned']}"
    assert "expected an absolute path" in problems(tmp_path, text)[0]
    deep: Any = "[" * 2000
    assert problems(tmp_path, deep)
