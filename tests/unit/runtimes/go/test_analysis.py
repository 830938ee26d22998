"""Go binaries made by hand: what is found in them, and what is refused."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import pytest

from tests.fixtures import gofile
from tests.fixtures.gofile import SMALL
from throughline.commands import inspect
from throughline.commands.output import text as printed
from throughline.elf.elf import MalformedError
from throughline.runtimes.go.analysis import analyse
from throughline.runtimes.go.program import FunctionSite, Program, UnsupportedError
from throughline.runtimes.go.wanted import EXTRA, FEATURES, split

OFFSETS = {
    "runtime.g.goid": 152,
    "runtime.g.m": 48,
    "runtime.m.p": 208,
    "runtime.m.curg": 192,
    "runtime.p.goidcache": 384,
    "runtime.p.goidcacheend": 392,
}


def look(tmp_path: Path, data: bytes) -> Program | None:
    path = tmp_path / "file"
    path.write_bytes(data)
    fd = os.open(path, os.O_RDONLY)
    try:
        return analyse(fd)
    finally:
        os.close(fd)


def site(past: int, *, single_stepped: bool = False, restarts: bool = False) -> FunctionSite:
    """Of the first function, past its first bytes."""
    return FunctionSite(gofile.TEXT_AT + past, gofile.TEXT + past, single_stepped, restarts)


def found(tmp_path: Path, data: bytes) -> Program:
    program = look(tmp_path, data)
    assert program is not None
    return program


VERSIONS = [f"go1.{minor}.3" for minor in range(18, 28)]


@pytest.mark.parametrize("relocated", [False, True])
@pytest.mark.parametrize("sections", [False, True])
@pytest.mark.parametrize("version", VERSIONS)
def test_the_layouts_of_all_releases(
    tmp_path: Path, version: str, sections: bool, relocated: bool
) -> None:
    data = gofile.build(version, sections=sections, relocated=relocated, pad=0x58)
    program = found(tmp_path, data)
    assert program.version == version
    assert program.path == "example.com/main"
    assert program.offsets == OFFSETS
    assert set(program.sources.values()) == {"types"}
    assert program.sites == {"runtime.newproc1": site(4, restarts=True)}
    assert "goroutines" not in program.missing
    assert program.missing["http_client"] == "the program does not use the client of net/http"


def test_the_first_magic_is_known_too(tmp_path: Path) -> None:
    assert found(tmp_path, gofile.build("go1.19.1", magic=0xFFFFFFF0)).offsets == OFFSETS


@pytest.mark.parametrize(
    ("version", "reason"),
    [
        ("go1.17.13", "go1.17.13 is older than go1.18"),
        ("go1.28.0", "go1.28.0 is newer than what was tested, go1.27"),
        ("devel go1.28-2f4e", "'devel go1.28-2f4e' is not a release of Go"),
        ("go2.1", "'go2.1' is not a release of Go"),
        # arguments on the stack; keys beside keys
        ("go1.22.10 X:noregabiargs", "built with GOEXPERIMENT=noregabiargs, which is not known"),
        ("go1.27.3 X:jsonv2,mapsplitgroup", "GOEXPERIMENT=mapsplitgroup, which is not known"),
        ("go1.25.5 X:something", "GOEXPERIMENT=something, which is not known"),
    ],
)
def test_other_versions_are_refused(tmp_path: Path, version: str, reason: str) -> None:
    with pytest.raises(UnsupportedError, match=reason):
        look(tmp_path, gofile.build(version))


@pytest.mark.parametrize(
    ("version", "swiss"),
    [
        ("go1.23.9", False),
        ("go1.24.11", True),
        ("go1.24.11 X:noswissmap", False),
        ("go1.25.5 X:noswissmap,jsonv2", False),
        ("go1.27.3 X:nogreenteagc", True),
    ],
)
def test_how_maps_are_laid_out(tmp_path: Path, version: str, swiss: bool) -> None:
    assert found(tmp_path, gofile.build(version)).swiss_maps is swiss


@pytest.mark.parametrize("version", ["go1.22", "go1.22rc1", "go1.22.10 X:boringcrypto", "go1.19.8"])
def test_versions_as_distributors_write_them(tmp_path: Path, version: str) -> None:
    assert found(tmp_path, gofile.build(version)).version == version


def test_the_format_before_go_1_18_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match=r"before 1\.18"):
        look(tmp_path, gofile.build(inline=False))


def test_other_files_are_none(tmp_path: Path) -> None:
    data = gofile.build().replace(b"\xff Go buildinf:", b"\xff No buildinf:")
    assert look(tmp_path, data) is None
    assert look(tmp_path, b"") is None
    assert look(tmp_path, b"#!/bin/sh\n" * 50) is None


def test_modules_and_what_replaces_them(tmp_path: Path) -> None:
    info = (
        "path\texample.com/a/b\n"
        "mod\texample.com/a\t(devel)\t\n"
        "dep\tgolang.org/x/net\tv0.30.0\th1:x=\n"
        "dep\tgoogle.golang.org/grpc\tv1.60.0\n"
        "=>\texample.com/fork\tv1.2.3\th1:y=\n"
        "dep\texample.com/c\tv1.0.0\n"
        "=>\texample.com/c\tv1.1.0\n"
        "build\t-compiler=gc\n"
    )
    program = found(tmp_path, gofile.build(info=info))
    assert program.path == "example.com/a/b"
    assert program.modules == {
        "example.com/a": "(devel)",
        "golang.org/x/net": "v0.30.0",
        "google.golang.org/grpc": "=> example.com/fork v1.2.3",
        "example.com/c": "v1.1.0",
    }
    assert found(tmp_path, gofile.build(info="")).modules == {}


def test_what_a_terminal_would_obey_is_not_passed_on(tmp_path: Path) -> None:
    info = "path\t\x1b[2Jx\ndep\tgolang.org/x/net\tv0.3\x07.0\n"
    program = found(tmp_path, gofile.build("go1.22.1\x1b[2J", info=info))
    assert program.version == "go1.22.1?[2J"
    assert program.path == "?[2Jx"
    assert program.modules == {"golang.org/x/net": "v0.3?.0"}


GRPC_CLIENT = {
    "google.golang.org/grpc.(*csAttempt).newStream": SMALL,
    "google.golang.org/grpc.(*clientStream).finish": SMALL,
}
GRPC = {
    **GRPC_CLIENT,
    "google.golang.org/grpc.(*Server).handleStream": SMALL,
    "google.golang.org/grpc/internal/transport.(*http2Server).operateHeaders": SMALL,
    "google.golang.org/grpc/internal/transport.(*http2Server).WriteStatus": SMALL,
}


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("v1.37.0", "google.golang.org/grpc v1.37.0 is older than v1.38"),
        ("v1.86.0", "google.golang.org/grpc v1.86.0 is newer than what was tested, v1.85"),
        (
            "v1.60.0\n=>\texample.com/fork\tv1.2.3",
            "google.golang.org/grpc is replaced by example.com/fork v1.2.3",
        ),
        ("v1.60.0", "no offset of google.golang.org/grpc.csAttempt.cs"),
        ("(devel)", "no offset of google.golang.org/grpc.csAttempt.cs"),
    ],
)
def test_modules_that_were_not_tested_are_refused(tmp_path: Path, line: str, reason: str) -> None:
    data = gofile.build(info=f"dep\tgoogle.golang.org/grpc\t{line}\n", functions=GRPC_CLIENT)
    assert found(tmp_path, data).missing["grpc_client"] == reason


def test_a_function_that_is_there_twice_is_not_probed(tmp_path: Path) -> None:
    program = found(tmp_path, gofile.build(twice="runtime.newproc1"))
    assert program.sites == {}
    assert program.missing["goroutines"] == "there are two functions runtime.newproc1"


@pytest.mark.parametrize("version", ["go1.21.1", "go1.27.1"])
def test_a_function_that_a_profile_has_inlined_is_not_probed(tmp_path: Path, version: str) -> None:
    profile = "path\texample.com/main\nbuild\t-pgo=/src/default.pgo\n"
    program = found(tmp_path, gofile.build(version, info=profile, inlined="runtime.newproc1"))
    assert program.sites == {}
    assert program.missing["goroutines"] == (
        "a profile has runtime.newproc1 inlined, where no probe sees it"
    )
    program = found(tmp_path, gofile.build(version, info=profile, inlined="main.main"))
    assert "goroutines" not in program.missing


def test_fields_within_structs_and_behind_pointers(tmp_path: Path) -> None:
    transport = "google.golang.org/grpc/internal/transport"
    stream: gofile.Fields = [("id", 24, ""), ("method", 32, ""), ("ctx", 56, "")]
    structs: dict[str, gofile.Fields] = {
        "net.TCPConn": [("conn", 0, "net.conn")],
        "net.conn": [("fd", 8, "*")],
        "net.netFD": [("pfd", 16, "poll.FD")],
        "poll.FD": [("fdmu", 0, ""), ("Sysfd", 16, "")],
        f"{transport}.Stream": stream,
        f"{transport}.ServerStream": [("Stream", 8, f"{transport}.Stream")],
        f"{transport}.ClientStream": [("Stream", 40, "*")],
    }
    program = found(tmp_path, gofile.build(structs=structs, functions=GRPC))
    assert program.offsets["net.TCPConn.conn.fd"] == 8
    assert program.offsets["net.netFD.pfd.Sysfd"] == 32
    # embedded as it is, and as a pointer
    assert program.offsets[f"{transport}.ServerStream.method"] == 40
    assert program.offsets[f"{transport}.ServerStream.ctx"] == 64
    assert f"{transport}.ServerStream.*Stream" not in program.offsets
    assert program.offsets[f"{transport}.ClientStream.id"] == 24
    assert program.offsets[f"{transport}.ClientStream.*Stream"] == 40
    assert program.types["*net.TCPConn"] == gofile.TYPES + 0x1000


def test_a_type_of_the_same_name_in_another_package_is_another(tmp_path: Path) -> None:
    structs: dict[str, gofile.Fields] = {
        "example.com/http.Request": [("Method", 8, "")],
        "net/http.Request": [("Method", 16, "")],
    }
    functions = dict.fromkeys(("net/http.(*persistConn).roundTrip", "net/http.readTransfer"), SMALL)
    program = found(tmp_path, gofile.build(structs=structs, functions=functions))
    assert program.offsets["net/http.Request.Method"] == 16


def test_since_go_1_27_http2_has_a_request_of_its_own(tmp_path: Path) -> None:
    """What belongs to the one is not looked for in the other."""
    structs: dict[str, gofile.Fields] = {
        "net/http.Request": [("Method", 0, "")],
        "net/http/internal/http2.ClientRequest": [("Method", 16, "")],
    }
    key = "net/http.http2ClientRequest.Method"
    methods = ["(*{}clientStream).writeRequest", "(*{}clientConnReadLoop).handleResponse"]
    methods += ["(*{}clientStream).cleanupWriteRequest"]
    for version, start, offset in (
        ("go1.26.1", "net/http.http2", 0),
        ("go1.27.1", "net/http/internal/http2.", 16),
    ):
        package, _, prefix = start.rpartition(".")
        functions = {f"{package}.{name.format(prefix)}": SMALL for name in methods}
        data = gofile.build(version, structs=structs, functions=functions)
        program = found(tmp_path, data)
        assert program.offsets[key] == offset
        assert program.missing["http2_client"].startswith("no offset of")
        data = gofile.build(version, structs=structs)
        program = found(tmp_path, data)
        assert key not in program.offsets
        assert program.missing["http2_client"] == (
            "the program does not use the HTTP/2 client of net/http"
        )


def test_the_table_knows_only_its_own_versions(tmp_path: Path) -> None:
    """A program without type data of the runtime: as the table has it, or not at all."""
    program = found(tmp_path, gofile.build("go1.22.10", structs={}))
    assert program.offsets.keys() == OFFSETS.keys()
    assert set(program.sources.values()) == {"table"}
    assert "goroutines" not in program.missing
    program = found(tmp_path, gofile.build("go1.22.99", structs={}))
    assert program.offsets == {}
    assert program.missing["goroutines"] == "no offset of runtime.g.goid"


def test_fields_have_structs() -> None:
    for feature in (*FEATURES, EXTRA):
        for group in feature.offsets:
            for name in group:
                struct_name, path = split(name)
                assert struct_name and path and f"{struct_name}.{path}" == name


# --- sites --------------------------------------------------------------------------------------


def test_a_single_stepped_function_is_probed_at_its_start(tmp_path: Path) -> None:
    functions = {"runtime.newproc1": b"\x48\x83\xec\x18"}
    program = found(tmp_path, gofile.build(functions=functions))
    assert program.sites == {"runtime.newproc1": site(0, single_stepped=True)}


def test_a_probe_never_lies_behind_its_function(tmp_path: Path) -> None:
    """The next function begins in the middle of what would be passed."""
    data = bytearray(gofile.build())
    pairs = data.index(struct.pack("<II", gofile.APART, 24 + 48))
    struct.pack_into("<I", data, pairs, 3)
    assert found(tmp_path, bytes(data)).sites["runtime.newproc1"] == site(0, single_stepped=True)


# --- throughline inspect ----------------------------------------------------------------------


def test_inspect_says_what_it_found(tmp_path: Path) -> None:
    path = tmp_path / "service"
    path.write_bytes(gofile.build(info="path\texample.com/main\ndep\tgolang.org/x/net\tv0.30.0\n"))
    text = printed(inspect.lines(inspect.inspect(str(path))))
    assert "a program of go1.22.10" in text
    assert "golang.org/x/net v0.30.0" in text
    lines = {line.split()[0]: line.split() for line in text.splitlines() if line.split()}
    assert lines["goroutines"] == ["goroutines", "on", "works"]
    assert lines["http_client"][1] == "missing"
    assert lines["runtime.newproc1"][1:] == [f"{gofile.TEXT_AT + 4:#x}", "emulated"]
    assert lines["runtime.g.goid"][1:] == ["152", "types"]


def test_inspect_says_why_not(tmp_path: Path) -> None:
    path = tmp_path / "service"
    for data, reason in (
        (b"", "this is no Go program for x86-64"),
        (gofile.build("go1.17.1"), "go1.17.1 is older than go1.18"),
    ):
        path.write_bytes(data)
        found_there = inspect.inspect(str(path))
        assert found_there["refused"] == reason
        assert printed(inspect.lines(found_there)) == f"{path}: {reason}"
    path.write_bytes(gofile.build()[:0x9000])
    assert "contradicts itself" in inspect.inspect(str(path))["refused"]


def test_a_module_that_leads_nowhere_is_refused(tmp_path: Path) -> None:
    data = bytearray(gofile.build())
    struct.pack_into("<Q", data, gofile.MODULE - gofile.BASE + 22 * 8, 1)
    with pytest.raises(MalformedError, match="text"):
        look(tmp_path, bytes(data))
    data = bytearray(gofile.build())
    struct.pack_into("<Q", data, gofile.MODULE - gofile.BASE, 1)
    with pytest.raises(UnsupportedError, match="function table"):
        look(tmp_path, bytes(data))
