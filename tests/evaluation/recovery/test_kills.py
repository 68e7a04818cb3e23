import json
import shutil
from pathlib import Path
from random import Random

import pytest

from evaluation.recovery.check import check
from evaluation.recovery.kills import Killings


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Killings:
    made = Killings(tmp_path_factory.mktemp("kills") / "site", Random(3))
    for _ in range(2):
        made.round()
    return made


def test_nothing_is_lost_or_duplicated_by_kills(site: Killings) -> None:
    found = check(site.root, site.studies)
    assert (site.kills, found.studies) == (4, 4)
    assert found.sound, found


def test_the_check_sees_what_is_lost_duplicated_or_left(tmp_path: Path, site: Killings) -> None:
    root = tmp_path / "copy"
    shutil.copytree(site.root, root)
    name = next(n for n, scores in site.studies.items() if scores)
    path = root / "outbox" / name / "report.json"
    words = json.loads(path.read_text())
    words["findings"].append({"route": "escalate", "centre_mm": [0, 0, 0], "probability": 0.7})
    words["changes"] += [{"centre_mm": [1, 1, 1]}] * 2
    path.write_text(json.dumps(words))
    (done,) = (root / "state" / "done").glob(f"*/{name}")
    shutil.copytree(done, root / "state" / "work" / "again" / name)
    found = check(root, site.studies | {"gone": (0.5,)})
    assert f"{name}: a finding, or a verdict on one" in found.lost
    assert {"gone: its files", "gone: its report"} <= set(found.lost)
    assert f"{name}: a verdict" in found.doubled
    assert any(words.startswith(f"{name}: also in") for words in found.doubled)
    assert found.left == ("work/again",)
