"""Read ``clinical.json`` from the folder of a study: what no image and no header says.

    {
      "smoking": "never" | "former" | "current",
      "family_history_of_lung_cancer": true | false,
      "emphysema": true | false,
      "spiculation": true | false,
      "prior_chest_ct": true | false
    }

Every field may be missing. ``spiculation`` holds for every finding, because findings have no number
before the study is read. The file is a person's or a program's of the hospital, so that it is
checked strictly: a misspelt field would otherwise count as unknown.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from imaging.errors import UnreadableFile
from imaging.files import SIDECARS, open_plain
from process.text import printable_line

(NAME,) = SIDECARS
SMOKING = ("never", "former", "current")
_FLAGS = ("family_history_of_lung_cancer", "emphysema", "spiculation", "prior_chest_ct")
_MAX_BYTES = 1 << 16


@dataclass(frozen=True)
class Clinical:
    """What is known of a patient beside images and header; None, or empty, where it is unknown.

    Attributes:
        prior_chest_ct: whether there is an earlier CT of the chest to compare with.
        source: the file it comes from; empty without one.
        problem: why the file was not used; empty if it was, or if there is none.
    """

    smoking: str = ""
    family_history_of_lung_cancer: bool | None = None
    emphysema: bool | None = None
    spiculation: bool | None = None
    prior_chest_ct: bool | None = None
    source: str = ""
    problem: str = ""


UNKNOWN = Clinical()


def clinical_of(study: Path) -> Clinical:
    """Return what the study's folder says; a file that cannot be used only leaves its reason.

    Raises:
        OSError: a fault of the machine.
    """
    file = study / NAME
    if not study.is_dir() or not (file.exists() or file.is_symlink()):
        return UNKNOWN
    values: Any = None
    try:
        with open_plain(file) as stream:
            text = stream.read(_MAX_BYTES + 1)
        problem = f"more than {_MAX_BYTES} bytes, expected a small JSON object"
        if len(text) <= _MAX_BYTES:
            values = json.loads(text)
            problem = _problem(values)
    except UnreadableFile as error:
        problem = error.reason
    except (ValueError, RecursionError):
        problem = "is no JSON, expected a JSON object"
    if problem:
        return Clinical(source=NAME, problem=problem)
    family, emphysema, spiculation, prior = (values.get(name) for name in _FLAGS)
    return Clinical(values.get("smoking") or "", family, emphysema, spiculation, prior, NAME)


def _problem(values: object) -> str:
    """Return which field of the file is wrong, and what is expected; empty for none."""
    if not isinstance(values, Mapping):
        return "is no JSON object"
    known = ("smoking", *_FLAGS)
    for name in values.keys() - set(known):
        near = get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"expected one of {', '.join(known)}"
        return f"{printable_line(name)[:60]}: there is no such field; {hint}"
    smoking = ", ".join(f'"{one}"' for one in SMOKING)
    expected = {"smoking": f"one of {smoking}", **dict.fromkeys(_FLAGS, "true or false")}
    for name, value in values.items():
        fits = value in SMOKING if name == "smoking" else isinstance(value, bool)
        if value is not None and not fits:
            return f"{name} = {json.dumps(value)[:60]}: expected {expected[name]}"
    return ""
