"""What commands print: tables, and lines in which nothing moves a cursor."""

from __future__ import annotations

from throughline.commands.output import few, table, text


def test_a_column_is_as_wide_as_its_widest_cell() -> None:
    rows = [("a", "1"), ("long", "23")]
    assert table(rows) == ["a     1", "long  23"]
    assert table(rows, head=("Name", "Count"), right=(1,)) == [
        "Name  Count",
        "a         1",
        "long     23",
    ]
    assert table([("a", "")], head=("Name", "")) == ["Name", "a"]
    assert table([], head=("Name", "Count")) == []


def test_a_long_cell_does_not_move_the_others() -> None:
    rows = [("a", "x" * 9, "file"), ("b", "x", "default")]
    assert table(rows, widest=3) == [f"a  {'x' * 9}  file", "b  x    default"]


def test_a_list_stays_a_line() -> None:
    assert few(()) == "none"
    assert few(("a", "b")) == "a, b"
    assert few([str(n) for n in range(10)], most=3) == "0, 1, 2 and 7 more"


def test_lines_are_printable() -> None:
    assert text(["a\x1b[2J", "b\n"]) == "a\\x1b[2J\nb\\n"
