"""Rules on the series of a study: what is read, what is ignored, and how urgent it is.

``rules test`` tells it beforehand.
"""

import json
import shutil
from pathlib import Path

import pytest
import SimpleITK as sitk
from typer.testing import CliRunner

from edge.cli.main import app
from edge.rules.explain import studies_below
from edge.rules.rule import Action, AppliedRule, Received, Rule, Rules
from edge.rules.selection import IgnoredStudy, priority_of, received_in, selection
from imaging.errors import NotCt
from imaging.read import read_study
from imaging.volume import Study
from protos.messages import Priority
from tests.imaging.small_ct import SmallCt

THICK = Rule("thick", {"description": ("thick",)})
NO_SLABS = Rule("no slabs", {"description": ("slab*",)}, action=Action.IGNORE)
NO_CT = Rule("no CT", {"modality": ("CT",)}, action=Action.IGNORE)


def read(folder: Path, *rules: Rule, series: str = "") -> Study:
    return read_study(folder, series, selection(Rules(rules), folder))


def came(folder: Path, **values: object) -> None:
    (folder / ".received.json").write_text(json.dumps(values))


@pytest.fixture(scope="module")
def shared_study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two whole chests and a slab, each in a folder of its own."""
    folder = tmp_path_factory.mktemp("study")
    SmallCt(12, 10.0, series="5", description="thick").write(folder / "a")
    SmallCt(24, 5.0, series="6", description="thin").write(folder / "b")
    SmallCt(12, 2.0, series="7", description="slab 0.5").write(folder / "c")
    return folder


@pytest.fixture
def study(shared_study: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(shared_study, tmp_path / "study"))


def test_the_series_of_an_earlier_rule_comes_first(study: Path) -> None:
    found = read(study, THICK)
    assert (found.volume.description, found.rule) == ("thick", "thick")
    assert any("the rule 'thick' comes first" in line for line in found.other_series)
    came(study / "a", calling_ae="CT_1")
    assert read(study, Rule("CT 1", {"calling_ae": ("ct_1",)})).volume.description == "thick"


def test_what_is_ignored_is_not_read_and_named(study: Path) -> None:
    found = read(study, NO_SLABS, Rule("thin", {"description": ("thin",)}, action=Action.IGNORE))
    assert found.volume.description == "thick"
    assert "'slab 0.5' (CT, 12 images): ignored by the rule 'no slabs'" in found.other_series


def test_the_setting_for_the_series_chooses_among_what_rules_leave(study: Path) -> None:
    assert read(study, NO_SLABS, series="thick").volume.description == "thick"
    with pytest.raises(NotCt, match="ignored by the rule 'no slabs'"):
        read(study, NO_SLABS, series="slab*")


def test_a_study_of_which_all_ct_is_ignored_is_ignored_and_says_by_what(study: Path) -> None:
    SmallCt(1, series="8", attributes={"Modality": "SR"}).write(study / "d")
    with pytest.raises(IgnoredStudy, match="ignored by the rules 'no CT', 'no slabs'") as error:
        read(study, NO_SLABS, NO_CT)
    assert error.value.applied == AppliedRule("no slabs", Action.IGNORE)
    known = error.value.study
    assert known is not None
    assert (known.header.patient_id, known.volume.hu.size) == ("P1", 0)
    assert "'chest' (SR, 1 image): modality SR is not CT" in known.other_series


def test_no_ct_at_all_is_refused_unless_rules_ignore_all_of_it(tmp_path: Path) -> None:
    SmallCt(2, attributes={"Modality": "MR"}).write(tmp_path / "a")
    with pytest.raises(NotCt):
        read(tmp_path, Rule("SR", {"modality": ("SR",)}, action=Action.IGNORE))
    with pytest.raises(IgnoredStudy):
        read(tmp_path, Rule("MR", {"modality": ("MR",)}, action=Action.IGNORE))


def test_series_without_lung_give_way_even_to_a_later_rule(tmp_path: Path) -> None:
    ct = SmallCt(12, 10.0, series="5", description="abdomen")
    images = ct.images()
    for image in images:
        image.PixelData = b"\x28\x04" * 1024  # 40 HU everywhere
    ct.write(tmp_path / "a", images)
    SmallCt(12, 10.0, series="6", description="chest").write(tmp_path / "b")
    found = read(tmp_path, Rule("first", {"description": ("abdomen",)}))
    assert found.volume.description == "chest"


def test_of_a_volume_file_rules_see_the_name(tmp_path: Path) -> None:
    image = sitk.GetImageFromArray(SmallCt(24, 5.0).hu())
    image.SetSpacing((2.0, 2.0, 5.0))
    sitk.WriteImage(image, str(tmp_path / "a.nii.gz"))
    assert read(tmp_path, Rule("files", {"description": ("*.nii.gz",)})).rule == "files"
    with pytest.raises(IgnoredStudy):
        read(tmp_path, Rule("rest", action=Action.IGNORE))


def test_ae_titles_are_those_of_the_nearest_folder(tmp_path: Path) -> None:
    inner = tmp_path / "study" / "series"
    inner.mkdir(parents=True)
    came(tmp_path, calling_ae="OUTSIDE")
    assert received_in(inner, tmp_path / "study") == Received()
    came(tmp_path / "study", calling_ae="CT_1", called_ae="OVERREAD", count=3)
    assert received_in(inner, tmp_path / "study") == Received("CT_1", "OVERREAD")
    came(inner, calling_ae=" CT_2 ", called_ae=None)
    assert received_in(inner, tmp_path / "study") == Received("CT_2", "")


@pytest.mark.parametrize("text", ["", "[]", "no JSON", "[" * 50_000, None])
def test_a_damaged_file_of_the_receiver_or_a_link_tells_nothing(
    text: str | None, tmp_path: Path
) -> None:
    study = tmp_path / "study"
    study.mkdir()
    if text is None:
        came(tmp_path, calling_ae="CT_1")
        (study / ".received.json").symlink_to(tmp_path / ".received.json")
    else:
        (study / ".received.json").write_text(text)
    assert received_in(study, study) == Received()


def test_a_study_is_as_urgent_as_the_most_urgent_of_its_series(study: Path) -> None:
    stat = Rule("stat", {"description": ("thick",)}, priority=Priority.STAT)
    assert priority_of(Rules((stat,)), Priority.ROUTINE)(study) is Priority.STAT
    assert priority_of(Rules((stat,)), Priority.ROUTINE)(study / "b") is Priority.ROUTINE
    late = Rule("late", priority=Priority.ROUTINE)
    assert priority_of(Rules((late,)), Priority.STAT)(study) is Priority.ROUTINE
    assert priority_of(Rules((NO_CT, stat)), Priority.ROUTINE)(study) is Priority.ROUTINE


def test_where_no_rule_names_a_priority_or_files_are_damaged_it_is_that_of_the_agent(
    tmp_path: Path,
) -> None:
    """Without a rule that names one, no file is opened."""
    assert priority_of(Rules((THICK,)), Priority.STAT)(tmp_path / "missing") is Priority.STAT
    (tmp_path / "a.dcm").write_bytes(b"\0" * 128 + b"DICM" + b"\xff" * 40)
    (tmp_path / "b.dcm").write_text("text")
    stat = Rule("stat", priority=Priority.STAT)
    assert priority_of(Rules((stat,)), Priority.ROUTINE)(tmp_path) is Priority.ROUTINE


RULES = """
[[rules]]
name = "night"
calling_ae = "ER"
priority = "stat"

[[rules]]
name = "slabs"
description = "slab*"
action = "ignore"
"""


@pytest.fixture(scope="module")
def studies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study of two series in sub-folders, and one of a slab alone."""
    root = tmp_path_factory.mktemp("inbox")
    SmallCt(12, 10.0, series="5").write(root / "first" / "a")
    SmallCt(12, 2.0, series="6", description="slab").write(root / "first" / "b")
    own = {"StudyInstanceUID": "1.2.826.2"}
    SmallCt(12, 2.0, series="7", description="slab", attributes=own).write(root / "second")
    (root / "rules.toml").write_text(RULES)
    return root


def test_a_folder_is_one_study_unless_its_folders_hold_several(studies: Path) -> None:
    assert studies_below(studies) == [studies / "first", studies / "second"]
    for one in ("first", "first/a/000.dcm"):
        assert studies_below(studies / one) == [studies / one]


def shown(path: Path, *arguments: object) -> str:
    result = CliRunner().invoke(app, ["rules", "test", str(path), *map(str, arguments)])
    assert result.exit_code == 0
    return result.stdout


def test_each_series_has_its_rule_and_one_is_marked_as_the_agent_would_read_it(
    studies: Path,
) -> None:
    rules = ("--rules", studies / "rules.toml")
    first, second = json.loads(shown(studies, *rules, "--json"))["studies"]
    assert (first["outcome"], first["reason"]) == ("read", "")
    assert (second["outcome"], second["reason"]) == ("ignored", "ignored by the rule 'slabs'")
    series = [*first["series"], *second["series"]]
    assert [(one["rule"], one["read"], one["slice_thickness_mm"]) for one in series] == [
        ("default", True, 10.0),
        ("slabs", False, 2.0),
        ("slabs", False, 2.0),
    ]
    at_night = shown(studies / "second", *rules, "--calling-ae", "er")
    assert "the marked series would be read" in at_night
    assert "read, stat" in at_night


def test_a_study_that_would_be_refused_says_why(tmp_path: Path) -> None:
    SmallCt(3).write(tmp_path / "short")
    (study,) = json.loads(shown(tmp_path / "short", "--json"))["studies"]
    assert study["outcome"] == "refused"
    assert study["reason"].startswith("IncompleteSeries: ")
