"""Real Go programs for tests, built with the `go` of this machine; skipped where there is none."""

from __future__ import annotations

import os
import random
import shutil
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from throughline.runtimes.go import pclntab

SERVER = """\
package main

import (
	"fmt"
	"io"
	"net/http"
	"os"
)

func main() {
	http.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		if answer, err := http.Get("https://127.0.0.1:9/"); err == nil {
			io.Copy(w, answer.Body)
			answer.Body.Close()
		}
	})
	go http.ListenAndServeTLS(":0", "certificate", "key", nil)
	fmt.Println(http.ListenAndServe(os.Args[1], nil))
}
"""
# Prints the offset of each field of the structs that are asked for, as DWARF has them.
WITNESS = """\
package main

import (
	"debug/dwarf"
	"debug/elf"
	"fmt"
	"os"
)

func main() {
	file, err := elf.Open(os.Args[1])
	if err != nil {
		panic(err)
	}
	data, err := file.DWARF()
	if err != nil {
		panic(err)
	}
	wanted := map[string]bool{}
	for _, name := range os.Args[2:] {
		wanted[name] = true
	}
	reader := data.Reader()
	for entry, err := reader.Next(); entry != nil && err == nil; entry, err = reader.Next() {
		name, _ := entry.Val(dwarf.AttrName).(string)
		if entry.Tag == dwarf.TagSubprogram && wanted[name] {
			start, _ := entry.Val(dwarf.AttrLowpc).(uint64)
			fmt.Println(name, start)
		}
		if entry.Tag != dwarf.TagStructType || !wanted[name] {
			continue
		}
		for field, _ := reader.Next(); field != nil && field.Tag != 0; field, _ = reader.Next() {
			offset, _ := field.Val(dwarf.AttrDataMemberLoc).(int64)
			fmt.Printf("%s.%s %d\\n", name, field.Val(dwarf.AttrName), offset)
		}
	}
}
"""


def build(folder: Path, *flags: str, source: str = SERVER, cgo: bool = False) -> Path:
    """Builds a program of one file."""
    go = shutil.which("go")
    if go is None:
        pytest.skip("go is not installed")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "go.mod").write_text("module example.com/program\n\ngo 1.18\n")
    (folder / "main.go").write_text(source)
    environment = {**os.environ, "CGO_ENABLED": str(int(cgo)), "GOTOOLCHAIN": "local"}
    done = subprocess.run(
        ["nice", "-n", "5", go, "build", *flags, "-o", "program", "."],
        check=False,
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return folder / "program"


def parsed(whole: bytes, generator: random.Random) -> Iterator[int]:
    """Places that the analysis reads: all of the headers, samples of the tables."""
    yield from range(64 + 16 * 56)
    table = whole.index(struct.pack("<IBBBB", pclntab.MAGICS[1], 0, 0, 1, 8))
    yield from range(table, table + 72)
    information = whole.index(b"\\xff Go buildinf:".decode("unicode_escape").encode("latin-1"))
    yield from range(information, information + 200)
    sections = struct.unpack_from("<Q", whole, 40)[0]
    yield from range(sections, len(whole) - 8)
    for _ in range(4000):
        yield generator.randrange(table, len(whole) - 8)
    # module data begins with the function table's address, which is in it once more
    for name in (b"*http.Request", b"*net.TCPConn", b"*runtime.g", b"net/http.serverHandler"):
        at = whole.find(name)
        while at >= 0:
            yield from range(at - 2, at + len(name))
            at = whole.find(name, at + 1)


def debugging(whole: bytes) -> Iterator[int]:
    """Places in DWARF around the structs that are asked for, and in the abbreviations."""
    for name in (b"net/http.persistConn\0", b"runtime.g\0", b"net/http.Request\0"):
        at = whole.find(name)
        while at >= 0:
            yield from range(at - 2, at + 600)
            at = whole.find(name, at + 1)
    # the first abbreviation: a unit with children, its name as a string
    start = whole.find(bytes([1, 0x11, 1, 3, 8]))
    if start >= 0:
        yield from range(start, start + 360)
