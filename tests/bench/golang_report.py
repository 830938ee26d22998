"""The results of Go services as Markdown: of this kernel, and of a VM that allows more."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import median

from tests.bench.golang import INSIDE, SERVICES, Results
from tests.bench.measure import OFF, spread
from tests.bench.report import cpu_model, decided, verdict
from throughline.runtimes.go.families import FAMILIES

AIM = 10.0  # percent fewer requests/s of net/http
AIMED = "net/http"
_EMULATED = (
    "This kernel is not locked down, so `go_write` is on. **The machine is emulated by software, on"
    " the processors of this one**: its requests/s and its nanoseconds say nothing about real"
    " machines, and neither does its loss, since a trap does not become slower by the same factor"
    " as the code of Go. Read how often each program runs for a request, how the times of the"
    " programs compare with each other, and how much `go_write` adds to `go` in proportion."
)


def markdown(here: Results | None, vm: Results | None) -> str:
    """The whole page; what was not measured is left out."""
    lines = [
        "# What tracing costs services of Go",
        "",
        "Written by `make bench`. [Go](../operator/go.md#what-it-costs) explains the numbers."
        " Other services are in [bench](bench.md).",
        "",
        "Compare numbers within a table: the agent is off and on by turns in one run. A service has"
        " one processor (`GOMAXPROCS=1`). Its client (wrk, by kept connections; for gRPC h2load,"
        " with eight calls at a time on each) and the service that it calls (nginx, which does"
        " almost nothing, or another service of gRPC) share the other one; the agent runs where"
        " there is room. Nothing is sampled: requests are read, counted and given a parent and a"
        " context, but no span is sent. The services answer with a line of JSON or a message as"
        " short and do nothing else: they are the worst case.",
    ]
    if here is not None:
        machine = f"{here.processors} processors ({cpu_model()})"
        lines += _section(here, f"Linux {here.kernel}", machine)
        lines += [*_aims(here), *_tables(here)]
    if vm is not None:
        machine = f"{vm.processors} processors, emulated"
        lines += _section(vm, f"Linux {vm.kernel}, in a VM", machine)
        lines += ["", _EMULATED, *_tables(vm)]
    return "\n".join(lines) + "\n"


def _section(results: Results, title: str, machine: str) -> list[str]:
    lines = [
        "",
        f"## {title}",
        "",
        f"{results.date}; {machine}; {_rounds(results)} of {results.seconds} s,"
        f" {results.connections} requests at a time; load average"
        f" {results.load_before:.1f} before and {results.load_after:.1f} at the end,"
        f" {results.others} other agents on this kernel.",
    ]
    if results.load_before > results.processors:
        lines += [
            "",
            "**Other processes used the processors, too**: times are several times too high. Read"
            " only how often something runs, and how times compare with each other.",
        ]
    return lines


def _rounds(results: Results) -> str:
    return "one round" if results.rounds == 1 else f"{results.rounds or 'no'} rounds"


def _aims(results: Results) -> list[str]:
    if not results.rates:
        return []
    lost = _lost(results, AIMED, INSIDE)
    spent = _more(results, AIMED, INSIDE)
    return [
        "",
        "| what | aim | measured | |",
        "|---|---|---|---|",
        f"| fewer requests/s at saturation: {AIMED}; {INSIDE} | {AIM:g} %"
        f" | {median(lost):.1f} % | {decided(lost, AIM)} |",
        f"| fewer requests for a second of the service's own CPU: {AIMED}; {INSIDE} | {AIM:g} %"
        f" | {median(spent):.1f} % | {verdict(median(spent), AIM)} |",
    ]


def _lost(results: Results, service: str, state: str) -> list[float]:
    """Percent fewer requests/s than with the agent off, round by round."""
    rates = results.rates[service]
    return [
        100 * (1 - on.per_second / off.per_second)
        for off, on in zip(rates[OFF], rates[state], strict=True)
    ]


def _more(results: Results, service: str, state: str) -> list[float]:
    """Percent fewer requests for a second of the service's own CPU, round by round."""
    spent = results.service_us[service]
    return [100 * (1 - off / on) for off, on in zip(spent[OFF], spent[state], strict=True)]


def _tables(results: Results) -> list[str]:
    return [*_rates(results), *_unwritten(results), *_programs(results), *_probes(results)]


def _rates(results: Results) -> list[str]:
    if not results.rates:
        return ["", "Requests/s were not measured in this run."]
    lines = [
        "",
        "Medians; *fewer* is the ratio within a round, as minimum, median, maximum. *service* is"
        " the CPU time of the service, with the probes and the programs that run in it, and *fewer"
        " by CPU* its loss by that time. Read these two where processors are shared.",
        "",
        "| service | agent | requests/s | fewer, % | p50 ms | p99 ms | service µs/request"
        " | fewer by CPU, % | errors |",
        "|---|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for service in SERVICES:
        for state in results.states():
            found = results.rates[service.name][state]
            lost = spent = ""
            if state != OFF:
                lost = _range(_lost(results, service.name, state))
                spent = _range(_more(results, service.name, state))
            lines.append(
                f"| {service.name} | {state}"
                f" | {median(rate.per_second for rate in found):,.0f} | {lost}"
                f" | {median(rate.p50 for rate in found):.2f}"
                f" | {median(rate.p99 for rate in found):.2f}"
                f" | {median(results.service_us[service.name][state]):.1f} | {spent}"
                f" | {sum(rate.errors for rate in found)} |"
            )
    return lines


def _unwritten(results: Results) -> list[str]:
    if not results.unwritten:
        return []
    return ["", f"`go_write` was not measured here: {results.unwritten}."]


def _programs(results: Results) -> list[str]:
    """Nanoseconds of each program of Go for each hit, by service."""
    functions = dict(_functions())
    names = [name for name in functions if any(name in of for of in results.programs.values())]
    lines = [
        "",
        "Nanoseconds of one hit of each program, from `kernel.bpf_stats_enabled`, without the"
        f" {results.stats_ns:.0f} ns that the statistics themselves take. The hits of a request are"
        " in brackets. The trap that leads to a program comes on top, see below. The last two rows"
        " are sums for a request; the other programs run for other processes, too, and `tl_tick`"
        " runs at every system call of the host.",
        "",
        f"| program | at | {' | '.join(service.name for service in SERVICES)} |",
        f"|---|---|{'--:|' * len(SERVICES)}",
    ]
    for name in names:
        cells = [_hit(results, service.name, name) for service in SERVICES]
        if any(cells):
            lines.append(f"| `{name}` | `{functions[name]}` | {' | '.join(cells)} |")
    for title, ours in ((f"all of {_groups(results)}", True), ("all others", False)):
        cells = [_all(results, service.name, functions, ours) for service in SERVICES]
        lines.append(f"| {title} | | {' | '.join(cells)} |")
    return lines


def _functions() -> Iterator[tuple[str, str]]:
    """Each program, and the function that it stands at, without its package."""
    for family in FAMILIES:
        for probe, (_, functions) in family.probes.items():
            yield probe, functions[0].rpartition("/")[2]


def _groups(results: Results) -> str:
    return "`go`" if results.unwritten else "`go` and `go_write`"


def _hit(results: Results, service: str, name: str) -> str:
    ns, runs = results.programs[service].get(name, (0.0, 0.0))
    if runs < 0.05:
        return ""
    return f"{ns / runs - results.stats_ns:,.0f} ({runs:.1f})"


def _all(results: Results, service: str, functions: dict[str, str], ours: bool) -> str:
    found = [
        (ns - runs * results.stats_ns, runs)
        for name, (ns, runs) in results.programs[service].items()
        if (name in functions) == ours
    ]
    return f"{sum(ns for ns, _ in found):,.0f} ({sum(runs for _, runs in found):.1f})"


def _probes(results: Results) -> list[str]:
    lines = ["", "What a probe adds to a call, with a program that does nothing:", ""]
    return lines + [f"- {place}: {ns:,.0f} ns" for place, ns in results.probes_ns.items()]


def _range(values: Sequence[float]) -> str:
    return " / ".join(f"{value:.1f}" for value in spread(list(values)))
