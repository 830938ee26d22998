"""Units in the paths of cgroups."""

from __future__ import annotations

from throughline.services.units import unescape, unit_path


def test_names() -> None:
    assert unescape(r"a\x2db\x5cc") == r"a-b\c"
    assert unit_path("a.slice/b.service/c/d") == "a.slice/b.service"
    assert unit_path("a.slice/b.service/c.scope") == "a.slice/b.service/c.scope"
    assert unit_path("a.slice") == ""


def test_escapes_of_unit_names_are_bytes_of_utf8() -> None:
    assert unescape(r"caf\xc3\xa9") == "café"
    for name in (r"a\x1b[2J", r"a\x00", r"a\xff", r"a\x0ab"):
        assert unescape(name) == name, "what cannot be printed stays escaped"
