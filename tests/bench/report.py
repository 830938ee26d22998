"""The results as Markdown: measured values beside the targets."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Mapping
from pathlib import Path
from statistics import median

from tests.bench.load import SCENARIOS, SECURE
from tests.bench.measure import (
    INSIDE,
    OFF,
    OUTSIDE,
    ROUNDS,
    SAMPLED,
    SECONDS,
    SECURE_STATES,
    STATES,
    UNSAMPLED,
    Rates,
    Results,
    spread,
)

AIM_RATE = 3.0  # percent fewer requests/s at saturation
AIM_SECURE = {OUTSIDE: 3.0, INSIDE: 8.0}  # percent fewer requests/s over HTTPS
AIM_BPF = 3000.0  # nanoseconds for each request and hop
AIM_SAMPLED = 30.0  # microseconds of agent CPU for each exported span
AIM_UNSAMPLED = 0.2  # microseconds of agent CPU for each unsampled request
AIM_MEMORY = 60.0  # MiB
AIM_START = 1.0  # seconds


def markdown(results: Results, *, seconds: float) -> str:
    """The whole report; parts that were not measured are left out."""
    lines = [
        "# What tracing costs",
        "",
        f"Written by `make bench` on {time.strftime('%Y-%m-%d', time.gmtime())}"
        f" in {seconds:.0f} s.",
        f"Kernel {platform.release()}, {os.cpu_count()} processors ({cpu_model()}),"
        f" load average {results.load_before:.1f} before and {os.getloadavg()[0]:.1f} at the end,"
        f" {results.others} other agents on this kernel.",
        "",
        "Compare numbers within a table, not between machines: the agent is off and on by turns in"
        " one run. wrk (one thread) and nginx (one worker, which does almost nothing for a request)"
        " have a processor each; the agent shares them. The Python service is the example of a"
        " service that works for its answers. With `on, nothing sampled` the agent still propagates"
        " and counts every request. Services of Go are in [bench-go](bench-go.md).",
    ]
    for part in (
        _summary,
        _rates,
        _programs,
        _secure,
        _others,
        _agent,
        _memory,
        _starts,
        _syscalls,
    ):
        lines += part(results)
    return "\n".join(lines) + "\n"


def cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def verdict(measured: float, aim: float) -> str:
    return "met" if measured <= aim else "**not met**"


def decided(measured: list[float], aim: float) -> str:
    """The verdict, when the rounds agree on it."""
    if min(measured) <= aim < max(measured):
        return "not decided: the rounds differ more than that"
    return verdict(median(measured), aim)


def _less_by_cpu(results: Results, scenario: str, state: str) -> float:
    """Percent fewer requests of a service that has used up its processor."""
    off = median(results.service_us[scenario, OFF])
    return 100 * (1 - off / median(results.service_us[scenario, state]))


def _loss(rates: Rates, scenario: str, state: str) -> list[float]:
    """Percent fewer requests/s than with the agent off, round by round."""
    off = rates[scenario, OFF]
    on = rates[scenario, state]
    return [100 * (1 - b.per_second / a.per_second) for a, b in zip(off, on, strict=True)]


def _bpf_net(results: Results, scenario: str, state: str) -> float:
    found = results.programs[scenario, state].values()
    return sum(max(0.0, ns - runs * results.stats_ns) for ns, runs in found)


def _summary(results: Results) -> list[str]:
    lines = ["| what | aim | measured | |", "|---|---|---|---|"]
    if results.rates:
        for state in (UNSAMPLED, SAMPLED):
            for scenario in SCENARIOS:
                loss = _loss(results.rates, scenario.name, state)
                lines.append(
                    f"| fewer requests/s at saturation: {scenario.name}; {state}"
                    f" | {AIM_RATE:g} % | {median(loss):.1f} % | {decided(loss, AIM_RATE)} |"
                )
                less = _less_by_cpu(results, scenario.name, state)
                lines.append(
                    "| fewer requests for a second of the service's own CPU:"
                    f" {scenario.name}; {state} | {AIM_RATE:g} % | {less:.1f} %"
                    f" | {verdict(less, AIM_RATE)} |"
                )
    if results.secure:
        for scenario in SECURE:
            for state, aim in AIM_SECURE.items():
                loss = _loss(results.secure, scenario.name, state)
                lines.append(
                    f"| fewer requests/s at saturation: {scenario.name}; {state} | {aim:g} %"
                    f" | {median(loss):.1f} % | {decided(loss, aim)} |"
                )
    if results.programs:
        for scenario in SCENARIOS:
            hop = _bpf_net(results, scenario.name, SAMPLED) / scenario.hops / 1000
            lines.append(
                f"| BPF for each request and hop: {scenario.name}; all sampled"
                f" | {AIM_BPF / 1000:g} µs | {hop:.2f} µs | {verdict(hop * 1000, AIM_BPF)} |"
            )
    if results.agent_us:
        for state, aim, what in (
            (SAMPLED, AIM_SAMPLED, "exported span"),
            (UNSAMPLED, AIM_UNSAMPLED, "unsampled request"),
        ):
            found = median(results.agent_us[state])
            lines.append(
                f"| agent CPU for each {what} | {aim:g} µs | {found:.2f} µs"
                f" | {verdict(found, aim)} |"
            )
    if results.memory:
        most = max(found["VmHWM"] for found in results.memory.values())
        lines.append(
            f"| resident memory at its highest | {AIM_MEMORY:g} MiB | {most:.1f} MiB"
            f" | {verdict(most, AIM_MEMORY)} |"
        )
    if results.start_seconds:
        found = median(results.start_seconds)
        lines.append(
            f"| start to first propagated request | {AIM_START:g} s | {found:.2f} s"
            f" | {verdict(found, AIM_START)} |"
        )
    rows = lines[2:]
    met = sum(row.endswith("| met |") for row in rows)
    missed = sum(row.endswith("| **not met** |") for row in rows)
    said = f"Of {len(rows)} aims {met} are met, {missed} are not met"
    said += f", {len(rows) - met - missed} are not decided."
    return ["", "## Against the aims", "", said, "", *lines]


def _rates(results: Results) -> list[str]:
    if not results.rates:
        return []
    lines = [
        "",
        "## Requests per second at saturation",
        "",
        f"wrk, {SCENARIOS[0].connections} connections (Python: 16), {SECONDS:g} s, medians of"
        f" {ROUNDS} rounds;"
        " *fewer* is the ratio within a round: minimum, median, maximum. *service* is the CPU"
        " time of nginx's worker or of the Python process, with the BPF programs that run in it."
        " Read this number when other processes share the processors.",
        "",
        "| scenario | agent | requests/s | fewer, % | p50 ms | p99 ms | service µs/request"
        " | errors |",
        "|---|---|--:|--:|--:|--:|--:|--:|",
    ]
    for scenario in SCENARIOS:
        for state in STATES:
            found = results.rates[scenario.name, state]
            fewer = (
                "" if state == OFF else _range(_loss(results.rates, scenario.name, state), "{:.1f}")
            )
            lines.append(
                f"| {scenario.name} | {state}"
                f" | {median(rate.per_second for rate in found):,.0f} | {fewer}"
                f" | {median(rate.p50 for rate in found):.2f}"
                f" | {median(rate.p99 for rate in found):.2f}"
                f" | {median(results.service_us[scenario.name, state]):.1f}"
                f" | {sum(rate.errors for rate in found)} |"
            )
    if results.saturated:
        said = ", ".join(f"{name} {value:,.0f}" for name, value in results.saturated.items())
        lines += ["", f"The spans of the last saturated round: {said}."]
    return lines


def _programs(results: Results) -> list[str]:
    if not results.programs:
        return []
    names = sorted({name for found in results.programs.values() for name in found})
    lines = [
        "",
        "## Time in BPF",
        "",
        "Nanoseconds for each request, runs in brackets, from `kernel.bpf_stats_enabled`. These"
        f" statistics themselves take {results.stats_ns:.0f} ns of each run, which `net` leaves"
        " out. `tl_tick` runs at every system call of the host, also at those of wrk, of the second"
        " nginx and of the agent.",
        "",
        f"| scenario | agent | hops | {' | '.join(names)} | for each hop | net |",
        f"|---|---|--:|{'--:|' * len(names)}--:|--:|",
    ]
    for scenario in SCENARIOS:
        for state in (UNSAMPLED, SAMPLED):
            found = results.programs[scenario.name, state]
            cells = [
                f"{found[name][0]:,.0f} ({found[name][1]:.1f})" if name in found else ""
                for name in names
            ]
            total = sum(ns for ns, _ in found.values()) / scenario.hops
            net = _bpf_net(results, scenario.name, state) / scenario.hops
            lines.append(
                f"| {scenario.name} | {state} | {scenario.hops} | {' | '.join(cells)}"
                f" | {total:,.0f} | {net:,.0f} |"
            )
    return lines


def _secure(results: Results) -> list[str]:
    if not results.secure:
        return []
    lines = [
        "",
        "## HTTPS",
        "",
        f"nginx with OpenSSL, {SECURE[0].connections} kept connections, nothing sampled; the group"
        " `packets` is off. The first row of each three shows the cost of TLS itself.",
        "",
        "| scenario | agent | requests/s | fewer, % | p50 ms | p99 ms | service µs/request |",
        "|---|---|--:|--:|--:|--:|--:|",
    ]
    for scenario in SECURE:
        for state in SECURE_STATES:
            found = results.secure[scenario.name, state]
            loss = [] if state == OFF else _loss(results.secure, scenario.name, state)
            lines.append(
                f"| {scenario.name} | {state}"
                f" | {median(rate.per_second for rate in found):,.0f}"
                f" | {_range(loss, '{:.1f}') if loss else ''}"
                f" | {median(rate.p50 for rate in found):.2f}"
                f" | {median(rate.p99 for rate in found):.2f}"
                f" | {median(results.secure_us[scenario.name, state]):.1f} |"
            )
    lines += ["", "Nanoseconds for each request in each program, runs in brackets:", ""]
    lines += _in_programs(results.secure_programs)
    lines += ["", "What a probe adds to a call, with a program that does nothing:", ""]
    return lines + [f"- {place}: {ns:,.0f} ns" for place, ns in results.probes_ns.items()]


def _in_programs(found: Mapping[str, Mapping[str, tuple[float, float]]]) -> list[str]:
    lines = []
    for name, programs in found.items():
        said = ", ".join(
            f"`{program}` {ns:,.0f} ({runs:.1f})"
            for program, (ns, runs) in sorted(programs.items())
            if runs >= 0.05
        )
        lines.append(f"- {name}: {said}")
    return lines


def _others(results: Results) -> list[str]:
    if not results.others_ns:
        return []
    said = [
        f"- `{name}`: {ns:,.0f} ns, {runs:,.0f} runs"
        for name, (ns, runs) in results.others_ns.items()
    ]
    return [
        "",
        "## Packets that are not for a peer",
        "",
        "The group `packets` is on, and no address of this machine is a peer. The times include"
        " those of the statistics. `tl_packets_out` sees every packet that leaves.",
        "",
        *said,
    ]


def _agent(results: Results) -> list[str]:
    if not results.agent_us:
        return []
    lines = [
        "",
        "## CPU of the agent",
        "",
        "All threads, beyond what the idle agent uses"
        f" ({results.idle_cpu_percent:.1f} % of a processor): minimum, median, maximum.",
        "",
        "| agent | CPU ms for each 1,000 requests |",
        "|---|--:|",
    ]
    for state, values in results.agent_us.items():
        lines.append(f"| {state} | {_range(values, '{:.2f}')} |")
    return lines


def _memory(results: Results) -> list[str]:
    if not results.memory:
        return []
    lines = ["", "## Memory of the agent", "", "| when | VmRSS MiB | VmHWM MiB |", "|---|--:|--:|"]
    for when, found in results.memory.items():
        lines.append(f"| {when} | {found['VmRSS']:.1f} | {found['VmHWM']:.1f} |")
    return lines


def _starts(results: Results) -> list[str]:
    if not results.start_seconds:
        return []
    return [
        "",
        "## Start",
        "",
        "From the start of the process to the first request that left with a `traceparent`:"
        f" {_range(results.start_seconds, '{:.2f}')} s (minimum, median, maximum).",
    ]


def _syscalls(results: Results) -> list[str]:
    if not results.syscall_ns:
        return []
    off, on = results.syscall_ns[OFF], results.syscall_ns[UNSAMPLED]
    return [
        "",
        "## Every system call of the host",
        "",
        "The tracepoint `sys_enter`, which ends the tick of event loops, costs every process."
        f" `getppid`: {_range(off, '{:.0f}')} ns with the agent off, {_range(on, '{:.0f}')} ns on"
        " (minimum, median, maximum).",
    ]


def _range(values: list[float], shape: str) -> str:
    return " / ".join(shape.format(value) for value in spread(values))
