"""The pages say what the code does: settings, variables, counters, limits, commands, links."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fixtures.folders import FOLDERS, STAGES, stage
from tests.fixtures.paths import CHECKOUT
from throughline.commands import cli
from throughline.commands.config import shown as shown_value
from throughline.config import schema
from throughline.config.model import load
from throughline.config.schema import SETTINGS, Setting
from throughline.features import providers

ROOT = CHECKOUT
DOCS = ROOT / "docs"
PAGES = sorted(
    [
        *ROOT.glob("*.md"),
        *DOCS.rglob("*.md"),
        *ROOT.glob("roles/*/*.md"),
        ROOT / "tests/README.md",
    ]
)
GENERATED = (DOCS / "reference/bench.md", DOCS / "reference/bench-go.md")  # with long lines
CONFIGURATION = DOCS / "operator/configure.md"
# Variables that are no setting: where the file is, what the launcher does, what is ignored.
OTHER_VARIABLES = {
    "THROUGHLINE_CONFIG",
    "THROUGHLINE_BPF_OBJECTS",
    "OTEL_SERVICE_NAME",
}

FENCE = re.compile(r"^[ ]*```(\w*)\n(.*?)^[ ]*```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
CODE = re.compile(r"`([^`\n]+)`")
PATH = r"(?:(?!FOLDER)[\w./-])+"  # FOLDER stands for each folder

page = pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))


def prose(path: Path) -> str:
    """A page without its code blocks."""
    return FENCE.sub("", path.read_text(encoding="utf-8"))


def fences(path: Path, *languages: str) -> Iterator[str]:
    """The contents of a page's code blocks in one of the languages."""
    for language, content in FENCE.findall(path.read_text(encoding="utf-8")):
        if language in languages:
            yield content


def rows(path: Path) -> Iterator[list[str]]:
    """The cells of each table row of a page."""
    for line in prose(path).splitlines():
        if line.startswith("|"):
            yield [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]


# -- form ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path", [one for one in PAGES if one not in GENERATED], ids=lambda path: path.stem
)
def test_lines_have_at_most_120_columns(path: Path) -> None:
    """Rows of tables, pictures and code blocks cannot be wrapped."""
    for line in prose(path).splitlines():
        assert len(line) <= 120 or line.startswith(("|", "![")), f"{path}: {line}"


# -- links -----------------------------------------------------------------------------------------


def anchors(path: Path) -> set[str]:
    """The fragments that a page's headings make, as GitHub builds them."""
    found = re.findall(r"^#+ +(.*?) *$", prose(path), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in found}


@page
def test_links_lead_somewhere(page: Path) -> None:
    for link in LINK.findall(prose(page)):
        if "://" in link or link.startswith("mailto:"):
            continue
        name, _, fragment = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), f"{page.name}: {link}"
        if fragment:
            assert fragment in anchors(target), f"{page.name}: {link}"


@page
def test_files_that_are_named_exist(page: Path) -> None:
    folders = ("agent", "bpf", "molecule", "playbooks", "plugins", "roles", "tests")
    for code in CODE.findall(prose(page)):
        if code.startswith(tuple(f"{folder}/" for folder in folders)) and re.fullmatch(PATH, code):
            assert (ROOT / code).exists(), f"{page.name}: {code}"


def test_code_names_pages_that_exist() -> None:
    """A comment, a message or a docstring that sends its reader to a page."""
    for folder in ("agent", "bpf", "molecule", "playbooks", "plugins", "roles", "tests"):
        for path in (ROOT / folder).rglob("*"):
            if path.suffix not in (".py", ".c", ".h", ".yml", ".yaml", ".j2", ".sh", ".service"):
                continue
            text = path.read_text(encoding="utf-8")
            for name in re.findall(r"\bdocs/[\w/-]+\.md\b", text):
                assert (ROOT / name).exists(), f"{path.relative_to(ROOT)}: {name}"


def test_index_has_every_page() -> None:
    """Decisions are listed by their folder."""
    index = DOCS / "README.md"
    linked = {(DOCS / link.partition("#")[0]).resolve() for link in LINK.findall(prose(index))}
    for page in sorted(DOCS.rglob("*.md")):
        known = page.parent if page.parent.name == "decisions" else page
        assert known in linked or page == index, page


def test_images_are_small() -> None:
    images = sorted((DOCS / "images").iterdir())
    shown = {
        (page.parent / link).resolve()
        for page in PAGES
        for link in re.findall(r"!\[[^\]]*\]\(([^)\s]+)\)", prose(page))
    }
    assert set(images) == shown
    assert all(image.stat().st_size < 150_000 for image in images)


def test_architecture_has_the_folders_in_their_order() -> None:
    """The order is that of the tests of includes and imports."""
    tables: dict[str, list[str]] = {}
    for cells in rows(DOCS / "developer/architecture.md"):
        if cells[0] in ("`bpf/`", "`agent/throughline/`") and cells[1] == "content":
            names = tables.setdefault(cells[0].strip("`"), [])
        elif not CODE.findall(cells[0]) and set(cells[0]) != {"-"}:
            names = []  # another table
        else:
            names += [name.rstrip("/").removesuffix(".py") for name in CODE.findall(cells[0])]
    assert tuple(tables["bpf/"]) == FOLDERS
    stages = [stage(name) for name in tables["agent/throughline/"]]
    assert stages == sorted(stages)
    known = set().union(*STAGES) - {"throughline", "__main__"}
    assert set(tables["agent/throughline/"]) == known


# -- commands --------------------------------------------------------------------------------------


def commands(path: Path) -> Iterator[str]:
    """Every command line of ours on a page: after a prompt, in a shell script, or in the text."""
    for block in fences(path, "console"):
        yield from (line[2:] for line in block.splitlines() if line.lstrip().startswith("$ "))
    for block in fences(path, "sh"):
        yield from block.splitlines()
    yield from CODE.findall(prose(path))


def arguments(command: str) -> list[str] | None:
    """The words behind `throughline`, or None when it is another program's command."""
    command = re.split(r"[|;&>]", command.strip().removeprefix("$ "))[0]
    command = command.strip().removeprefix("sudo ")
    program, _, rest = command.partition(" ")
    if program.rpartition("/")[2] != "throughline" or not rest:
        return None
    return shlex.split(re.sub(r"[][]", "", rest))


@page
def test_commands_are_ones_that_the_agent_knows(page: Path) -> None:
    for command in commands(page):
        words = arguments(command)
        if words is None:
            continue
        try:
            cli.parser().parse_args(words)
        except SystemExit as end:
            assert end.code == 0, f"{page.name}: {command}"


def test_some_commands_are_found() -> None:
    found = {tuple(words) for path in PAGES for c in commands(path) if (words := arguments(c))}
    assert {("doctor",), ("status",), ("config", "show")} <= found


# -- configuration ---------------------------------------------------------------------------------


def shown(setting: Setting) -> str:
    """A default as the page writes it; "" where nothing stands for none."""
    value = setting.default
    if value is None:
        return ""
    return shown_value(str(value) if isinstance(value, Path) else value)


def test_settings_are_documented() -> None:
    known = {setting.key for setting in SETTINGS}
    section = re.compile(
        r"(propagation|instrumentation|sampling|export|resource|agent)(\.[a-z_]+)+"
    )
    found = {code for row in rows(CONFIGURATION) for cell in row for code in CODE.findall(cell)}
    assert {code for code in found if section.fullmatch(code)} == known


def test_variables_are_documented() -> None:
    known = {name for setting in SETTINGS for name, _ in setting.variables}
    found = set(re.findall(r"\b(?:OTEL|THROUGHLINE)_[A-Z_]+\b", prose(CONFIGURATION)))
    assert found == known | OTHER_VARIABLES


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.key)
def test_row_says_values_default_and_variable(setting: Setting) -> None:
    row = next(row for row in rows(CONFIGURATION) if f"`{setting.key}`" in row)
    at = row.index(f"`{setting.key}`")
    variables = {name for name, _ in setting.variables}
    if setting.key.startswith(("export.otlp.traces.", "export.otlp.metrics.")):
        assert CODE.findall(row[at + 1]) == list(variables)
        return
    _, kind, default, variable = row
    assert set(CODE.findall(variable)) == variables
    if shown(setting):
        assert CODE.findall(default) == [shown(setting)]
    if setting.kind.expects.startswith("one of "):
        assert CODE.findall(kind) == setting.kind.expects.removeprefix("one of ").split(", ")


def test_default_endpoints_are_documented() -> None:
    row = next(row for row in rows(CONFIGURATION) if row[0] == "`export.otlp.endpoint`")
    expected = [schema.DEFAULT_HTTP_ENDPOINT, schema.DEFAULT_GRPC_ENDPOINT]
    assert CODE.findall(row[2]) == expected


@page
def test_examples_of_the_file_are_valid(page: Path, tmp_path: Path) -> None:
    for number, example in enumerate(fences(page, "yaml")):
        top = re.findall(r"^(\w+):", example, re.MULTILINE)
        if not top or not set(top) <= {"services", *(s.key.split(".")[0] for s in SETTINGS)}:
            continue  # a playbook or variables
        file = tmp_path / f"{number}.yaml"
        file.write_text(example, encoding="utf-8")
        load(file, environment={})


# -- counters and limits ---------------------------------------------------------------------------


def counters() -> set[str]:
    """Every counter that `throughline status` can show: the kernel's and the agent's."""
    header = (ROOT / "bpf/core/abi.h").read_text(encoding="utf-8")
    enum = re.search(r"enum tl_counter \{(.*?)\};", header, re.DOTALL)
    assert enum is not None
    kernel = {name.lower() for name in re.findall(r"^\tTL_([A-Z0-9_]+)\b", enum[1], re.MULTILINE)}
    modules = sorted((ROOT / "agent/throughline/agent").glob("*.py"))
    agent = "".join(path.read_text(encoding="utf-8") for path in modules)
    own = set(re.findall(r'(?:counts|counters)\["(\w+)"\]', agent))
    own |= {
        f"step_failed_{name}" for name in re.findall(r'steps\.(?:run|turns)\(\s*"(\w+)"', agent)
    }
    tc = (ROOT / "agent/throughline/bpf/tc.py").read_text(encoding="utf-8")
    own |= set(re.findall(r'counts\["(\w+)"\]', tc))
    own |= {f"step_failed_follow_{entry.group}" for entry in providers.TABLE}
    for path in (ROOT / "agent/throughline/probes").glob("*.py"):
        text = path.read_text(encoding="utf-8")
        reasons = re.findall(r'failures\["(\w+)"\]|\.fail\("(\w+)"', text)
        own |= {f"tls_{reason}" for pair in reasons for reason in pair if reason}
    text = (ROOT / "agent/throughline/runtimes/go/provider.py").read_text(encoding="utf-8")
    own |= {f"go_{reason}" for reason in re.findall(r'failures\["(\w+)"\]', text)}
    (refusals,) = re.findall(r"except \(([^)]*)\) as error:\n +self\.failures", text)
    own |= {f"go_{name.lower()}" for name in re.findall(r"(\w+)Error\b", refusals)}
    text = (ROOT / "agent/throughline/runtimes/java/provider.py").read_text(encoding="utf-8")
    reasons = re.findall(r'failures\["(\w+)"\]|\._fail\("(\w+)"', text)
    own |= {f"java_{reason}" for pair in reasons for reason in pair if reason}
    for name in ("node", "python", "proxies", "ruby"):
        for path in (ROOT / "agent/throughline/runtimes" / name).glob("*.py"):
            text = path.read_text(encoding="utf-8")
            own |= {f"{name}_{reason}" for reason in re.findall(r'failures\["(\w+)"\]', text)}
    return (kernel - {"counters"}) | own


def drops() -> set[str]:
    """Every reason for which the export drops spans."""
    pipeline = (ROOT / "agent/throughline/export/pipeline.py").read_text(encoding="utf-8")
    named = set(re.findall(r'_dropped\["(\w+)"\]', pipeline))
    of_spool = re.search(r"_dropped \+ Counter\((.*?)\n *\)", pipeline, re.DOTALL)
    assert of_spool is not None
    return named | set(re.findall(r"(\w+)=", of_spool[1]))


def first_column(path: Path, heading: str) -> set[str]:
    """The code words in the first column of the tables below a heading."""
    _, _, rest = prose(path).partition(f"\n## {heading}\n")
    section = rest.partition("\n## ")[0]
    cells = re.findall(r"^\|([^|]*)\|", section, re.MULTILINE)
    return {code for cell in cells for code in CODE.findall(cell)}


def test_counters_are_documented() -> None:
    assert first_column(DOCS / "reference/counters.md", "Every counter") == counters()


def test_dropped_spans_are_documented() -> None:
    assert first_column(DOCS / "reference/counters.md", "Dropped spans") == drops()


def test_counters_of_the_other_pages_exist() -> None:
    prefixes = (
        "parent_",
        "root_",
        "skip_",
        "lost_",
        "full_",
        "enrol",
        "evict",
        "spans_",
        "option_",
        "go_child_",
        "go_no_",
        "go_too_",
        "go_un",
    )
    for path in PAGES:
        found = {code for code in CODE.findall(prose(path)) if re.fullmatch(r"[a-z_]+", code)}
        assert {code for code in found if code.startswith(prefixes)} <= counters(), path.name


def test_attributes_and_metrics_are_documented() -> None:
    package = ROOT / "agent/throughline"
    spaces = "client error host http linux network os rpc server systemd telemetry url"
    name = re.compile(rf'"((?:{spaces.replace(" ", "|")}|throughline)\.[a-z_.]+)"')
    sources = [*(package / "telemetry").glob("*.py"), package / "host/attributes.py"]
    sources.append(package / "services/naming.py")
    used = {found for path in sources for found in name.findall(path.read_text(encoding="utf-8"))}
    used -= {"throughline.service"}  # the agent's unit
    assert len(used) > 30
    page = set(CODE.findall(prose(DOCS / "reference/metrics.md")))
    assert used - page == set()


def test_what_ends_the_entries_of_each_map_is_documented() -> None:
    """Each map has a row that says what ends its entries."""
    sources = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "bpf").rglob("*.[ch]"))
    known = set(re.findall(r"^\} (tl_\w+) SEC\(\"\.maps\"\);", sources, re.MULTILINE))
    assert len(known) > 25
    page = DOCS / "developer/state.md"
    assert {code for code in CODE.findall(prose(page)) if code in known} == known
    for row in rows(page):
        if row[0].startswith("`tl_"):
            assert all(row[1:3]), row[0]


def test_limits_of_maps_are_documented() -> None:
    sources = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "bpf").rglob("*.[ch]"))
    maps = re.compile(
        r"__uint\(max_entries, (\d+)(?: << (\d+))?\);[^}]*LIBBPF_PIN_BY_NAME\);\n\} (\w+) SEC"
    )
    sizes = {name: int(size) << int(shift or 0) for size, shift, name in maps.findall(sources)}
    known = {name: size for name, size in sizes.items() if size > 1}  # one entry is no limit
    assert len(known) > 6
    found = {
        row[0].strip("`"): row[1]
        for row in rows(DOCS / "reference/limits.md")
        if row[0][:4] == "`tl_"
    }
    assert set(found) == set(known)
    for name, size in known.items():
        text = f"{size >> 20} MiB" if size >= 1 << 20 else f"{size:,}"
        assert text in found[name], name
