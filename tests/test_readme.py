"""The documents: what they say of files, settings, commands and tests is so."""

import ast
import re
import shutil
import subprocess
import textwrap
import tomllib
from pathlib import Path

import pytest
import typer
import yaml
from PIL import Image
from pynetdicom import AE

from cloud.settings import CloudSettings
from edge.dicom_in.scp import MAX_ASSOCIATIONS, MAX_PDU_BYTES
from edge.link.estimate import OFF
from edge.settings.core import EdgeSettings
from evaluation.pages import PROGRAMS, WIDTH, leaves
from models.runtime.artifacts import find
from process.settings import load, settings_of
from protos.errors import TABLE
from tests.served_metrics import served
from tools import reference
from tools.pictures import DRAWN

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])


def words(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_relative_links_lead_somewhere(document: Path) -> None:
    text = re.sub(r"```.*?```", "", document.read_text(encoding="utf-8"), flags=re.DOTALL)
    targets = [t.split("#")[0] for t in re.findall(r"\]\(([^)\s]+)\)", text)]
    inside = [t for t in targets if t and not re.match(r"[a-z]+:", t)]
    assert [t for t in inside if not (document.parent / t).exists()] == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_to_sections_lead_to_headings(document: Path) -> None:
    links = re.findall(r"\]\(([\w/.-]*)#([\w-]+)\)", document.read_text(encoding="utf-8"))
    pages = {page: document.parent / page if page else document for page, _ in links}
    assert [one for one in links if one[1] not in anchors(pages[one[0]])] == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_prose_wraps_at_100_columns(document: Path) -> None:
    """Tables, code and pictures have lines of their own length."""
    text = re.sub(r"```.*?```", "", document.read_text(encoding="utf-8"), flags=re.DOTALL)
    prose = [line for line in text.splitlines() if not line.startswith(("|", "    ", "!["))]
    assert [line for line in prose if len(line) > WIDTH] == []


def test_the_code_and_the_tests_named_in_the_architecture_exist() -> None:
    """Each function, class and constant lies in the file that the page names."""
    pages = words("docs/architecture.md") + words("docs/failures.md")
    cited = re.findall(r"`([\w/]+\.py)::(\w+)`", pages)
    tests = [(f"tests/{file}", name) for file, name in cited if name.startswith("test_")]
    code = [(file, name) for file, name in cited if not name.startswith("test_")]
    assert tests
    assert code
    assert [one for one in tests + code if not is_defined(*one)] == []


def test_the_table_of_times_has_the_defaults_of_the_settings() -> None:
    """A row names a setting of edge or cloud with its default, or a name in a module."""
    section = words("docs/architecture.md").split("## Time")[1].split("\n## ")[0]
    rows = [line.split("|")[2:4] for line in section.splitlines() if line.startswith("| ")]
    stated = {name: given for given, where in rows for name in re.findall(r"`([\w.]+)`", where)}
    fields = settings_of(EdgeSettings) | settings_of(CloudSettings)
    assert "deadline_s" in stated
    assert stated.keys() - fields.keys() == set()
    wrong = [n for n, given in stated.items() if f"{fields[n].default:g}" not in given.split()]
    assert wrong == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_the_modules_named_in_a_document_exist(document: Path) -> None:
    cited = set(re.findall(r"`(\w+/[\w/]+\.py)`", words(str(document))))
    assert [file for file in cited if not (ROOT / file).is_file()] == []


def test_no_figure_of_the_readme_is_written_by_hand() -> None:
    """It is rendered from the results, but for what a published system names."""
    template = re.sub(r"{[{%].*?[%}]}", "", words("README.md.j2"))
    figures = re.findall(r"[\d.]+ (?:%|points)|\d+ of \d+|[\d.]+ (?:s|ms|MB)\b", template)
    assert set(figures) == {"95 %", "97.2 %"}


def test_the_reference_is_what_the_code_says() -> None:
    """`python -m tools.reference` writes it again."""
    assert words("docs/reference.md") == reference.page()
    assert words("docs/conformance.md") == reference.conformance()
    assert "|  |\n" not in words("docs/reference.md"), "a setting, metric or error is not explained"


@pytest.mark.parametrize("name", DRAWN)
def test_a_picture_is_of_the_networks_of_today_and_of_the_report_that_readme_prints(
    name: str,
) -> None:
    """`make evaluate` draws it again; it does not grow."""
    file = ROOT / "docs" / name
    with Image.open(file) as picture:
        texts = picture.info
    for one in (EdgeSettings().screening_model, CloudSettings().model):
        assert f"{one} {find(one).version}" in texts["models"]
    assert texts["result"] in " ".join(words("README.md").split())
    assert file.stat().st_size < 250_000
    assert any(re.search(rf"\]\((docs/)?{name}\)", page.read_text()) for page in DOCUMENTS)
    planned = subprocess.run(["make", "-n", "evaluate"], cwd=ROOT, capture_output=True, text=True)
    assert "-m tools.pictures" in planned.stdout


def test_every_address_that_can_be_listened_on_is_in_the_table() -> None:
    """`cloud.address` of the edge is another machine's."""
    section = words("docs/connect.md").split("## What listens\n")[1].split("\n## ")[0]
    listed = re.findall(r"^\| (edge|cloud): `([\w.]+)`", section, re.MULTILINE)
    both = (("edge", EdgeSettings), ("cloud", CloudSettings))
    names = [(program, name) for program, kind in both for name in settings_of(kind)]
    wanted = {(p, name) for p, name in names if re.search(r"(^|_|\.)address$", name)}
    assert set(listed) == wanted - {("edge", "cloud.address")}


def test_the_options_of_storescu_are_those_of_dcmtk() -> None:
    if shutil.which("storescu", path="/usr/bin") is None:
        pytest.skip("needs storescu: apt install dcmtk")
    known = subprocess.run(["/usr/bin/storescu", "--help"], capture_output=True, text=True).stdout
    listed = dict(re.findall(r"`(-x\w)` (J[^,.]+|RLE|def\w+)", words("docs/connect.md")))
    for option, syntax in listed.items():
        said = " ".join(known.split(f" {option} ")[1].split("\n    -")[0].split())
        assert syntax.replace("\n", " ").lower() in said.lower()
    assert len(listed) == 7


def test_the_limits_of_associations_are_those_of_the_code() -> None:
    other = AE()
    version = f"{other.implementation_version_name}"
    for receiver, sender in (
        (f"{MAX_PDU_BYTES}", f"{other.maximum_pdu_size}"),
        (f"{MAX_ASSOCIATIONS}", "1 for each target"),
        (f"`{other.implementation_class_uid}`", f"`{other.implementation_class_uid}`"),
        (version, version),
    ):
        assert f" | {receiver} | {sender} |\n" in words("docs/conformance.md")


def test_metrics_named_on_a_page_are_served() -> None:
    pages = " ".join(words(f"docs/{page}.md") for page in ("monitor", "operate", "connect"))
    assert set(re.findall(r"overread_(?:edge|cloud)_\w+", pages)) - served() == set()


def test_every_alert_is_explained() -> None:
    groups = yaml.safe_load(words("deploy/prometheus/alerts.yml"))["groups"]
    rules = {one["alert"]: one["labels"]["severity"] for group in groups for one in group["rules"]}
    section = words("docs/monitor.md").split("## Alerts\n")[1].split("\n## ")[0]
    explained = {
        name: severity
        for names, severity in re.findall(r"^(\*\*.+?\*\*) \((\w+)\)\.", section, re.MULTILINE)
        for name in re.findall(r"\w+", names)
    }
    assert explained == rules


def test_every_reason_of_a_missing_second_reading_is_explained() -> None:
    """By the words in the report, not by the program's classes."""
    section = words("docs/operate.md").partition("## When the second reading is missing")[2]
    table = section.partition("## Amended reports")[0]
    reasons = {error.words for _, errors in TABLE for error in errors} | {OFF.reason}
    assert [reason for reason in reasons if reason.removesuffix(" as too large") not in table] == []


def test_log_lines_that_need_a_person_are_logged() -> None:
    table = words("docs/monitor.md").split("| line | what to do |")[1].split("\n\n")[0]
    lines = [
        line for row in table.splitlines()[2:] for line in re.findall("`.+?`", row.split("|")[1])
    ]
    assert lines
    assert [line for line in lines if line not in words("docs/reference.md")] == []


@pytest.mark.parametrize("page", ["install", "connect", "operate", "monitor", "own-network"])
def test_settings_that_a_page_shows_are_valid(page: str, tmp_path: Path) -> None:
    """Each block of TOML is one of the edge, of the cloud, or of rules."""
    blocks = re.findall(r"\n\n((?: {4}.*\n|\n(?= {4}))+)", words(f"docs/{page}.md"))
    shown = [b for b in map(textwrap.dedent, blocks) if re.match(r"(#.*\n)?(\[|[a-z_.]+ = )", b)]
    for number, text in enumerate(shown):
        file = tmp_path / f"{number}.toml"
        file.write_text(text)
        if "[[rules]]" not in text:
            is_edge = not tomllib.loads(text).keys() <= CloudSettings.model_fields.keys()
            load(EdgeSettings if is_edge else CloudSettings, file, {})
    assert shown


@pytest.mark.parametrize("program", PROGRAMS)
def test_the_page_of_commands_has_every_command(program: str) -> None:
    """Those of edge and cloud with their options, but for two that many have."""
    sections = re.split(r"^#+ ", words("docs/commands.md"), flags=re.MULTILINE)
    for path, command in leaves(typer.main.get_command(PROGRAMS[program]), program):
        if program in ("overread-edge", "overread-cloud"):
            section = next(one for one in sections if one.startswith(f"`{path}`"))
            said = {"--config", "--json", *re.findall(r"(?:`|, )(--[a-z-]+)", section)}
            options = {name for option in command.params for name in option.opts}
            assert {name for name in options if name.startswith("--")} - said == set(), path
        else:
            assert f"| `{path}` |" in words("docs/commands.md")


def test_commands_named_on_a_page_exist() -> None:
    """All pages but the list of changes, which names those that are gone."""
    known = {
        " ".join(path.split()[:2])
        for program, app in PROGRAMS.items()
        for path, _ in leaves(typer.main.get_command(app), program)
    }
    pages = " ".join(one.read_text() for one in DOCUMENTS if one.name != "CHANGELOG.md")
    named = re.findall(r"overread-(?:edge|cloud|models|eval)\s[a-z][a-z0-9-]+", pages)
    assert {" ".join(one.split()) for one in named} - known == set()


def anchors(page: Path) -> set[str]:
    """The names of a page's headings in links, as GitHub makes them."""
    heads = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", head).lower().replace(" ", "-") for head in heads}


def is_defined(file: str, name: str) -> bool:
    """Whether a module defines that name at its top level."""
    if not (ROOT / file).is_file():
        return False
    names = set[str]()
    for node in ast.parse(words(file)).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names |= {one.id for t in targets for one in ast.walk(t) if isinstance(one, ast.Name)}
    return name in names
