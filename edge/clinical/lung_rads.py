"""A suggested Lung-RADS category of a baseline screening examination, with its inputs.

American College of Radiology, Lung-RADS v2022, November 2022; J. Christensen et al., Journal of the
American College of Radiology 21:473-488, 2024. Only size and type of solid, part-solid and
ground-glass nodules at baseline are used. The standard wants the mean of the long and the short
axis to one decimal. A finding has the diameter of the sphere of its volume instead, for which the
standard's own limits in mm³ are the same (113 mm³ is a sphere of 6 mm).

It is a suggestion for the radiologist. It says nothing of what to do.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from edge.clinical.sidecar import Clinical
from edge.findings import Finding, named
from imaging.volume import Limitation, LimitationKind

STANDARD = "ACR Lung-RADS v2022"
CATEGORIES = ("1", "2", "3", "4A", "4B")
"""By rising suspicion; 0 stands apart: the examination cannot be assessed."""
_RANK = CATEGORIES.index
NOT_CONSIDERED = (
    "Not considered: calcification and fat, juxtapleural and airway nodules, cysts, signs of"
    " inflammation, the features of category 4X and the modifier S. Possible findings do not count."
)
_SMALL_MM, _MEDIUM_MM, _LARGE_MM, _GROUND_GLASS_MM = 6.0, 8.0, 15.0, 30.0


@dataclass(frozen=True)
class NoduleCategory:
    """The category of one finding; ``least`` and ``most`` differ where an input is unknown.

    Attributes:
        number: of the finding.
        diameter_mm: to one decimal, as the standard says.
        type: ``solid``, ``part-solid``, ``ground glass``, or empty where it is unknown.
        missing: the inputs that are unknown and matter.
    """

    number: int
    diameter_mm: float
    type: str
    least: str
    most: str
    missing: tuple[str, ...] = ()


@dataclass(frozen=True)
class LungRads:
    """The suggestion for one examination.

    Attributes:
        category: None where it is not determined; it is then from ``least`` to ``most``. All are
            None where no category is suggested.
        inputs: every finding with its own category.
        reasons: sentences: what decided, what is missing, and what is not considered.
    """

    category: str | None
    least: str | None
    most: str | None
    inputs: tuple[NoduleCategory, ...]
    reasons: tuple[str, ...]

    @property
    def text(self) -> str:
        """The category in a few words; the reasons begin with what is missing for it."""
        return "no category" if self.category is None else f"category {self.category}"


def suggest(
    findings: Sequence[tuple[int, Finding]],
    limitations: Sequence[Limitation],
    clinical: Clinical,
    *,
    was_read: bool,
) -> LungRads:
    """Return the suggestion for a screening examination with these findings by number."""
    if clinical.prior_chest_ct:
        return LungRads(None, None, None, (), (_PRIOR,))
    if not was_read:
        return LungRads("0", "0", "0", (), ("The study was not read.",))
    inputs = tuple(nodule_category(number, finding) for number, finding in findings)
    # the lungs cannot be assessed where they are cut, or where disease hides nodules
    hidden = (LimitationKind.COVERAGE, LimitationKind.DIFFUSE)
    if incomplete := tuple(one.text for one in limitations if one.kind in hidden):
        text = "The lungs cannot be assessed as a whole."
        return LungRads("0", "0", "0", inputs, (text, *incomplete))
    reasons = [_BASELINE] if clinical.prior_chest_ct is None else []
    if not inputs:
        return LungRads("1", "1", "1", (), ("There is no finding.", *reasons, NOT_CONSIDERED))
    least = max((one.least for one in inputs), key=_RANK)
    most = max((one.most for one in inputs), key=_RANK)
    decisive = [one for one in inputs if one.most == most]
    reasons.insert(0, "; ".join(_sentence(one) for one in decisive) + ".")
    # what is missing of a lesser finding changes nothing
    open_ones = [one for one in inputs if one.missing and _RANK(one.most) > _RANK(least)]
    missing: dict[str, list[int]] = {}
    for one in open_ones:
        missing.setdefault(" and ".join(one.missing), []).append(one.number)
    if missing:
        said = (f"{what} of {named('finding', numbers)}" for what, numbers in missing.items())
        reasons.insert(0, f"Missing: {'; '.join(said)}.")
    category = least if least == most else None
    return LungRads(category, least, most, inputs, (*reasons, NOT_CONSIDERED))


_BASELINE = "No prior CT of the chest is known: the examination is taken for a baseline."
_PRIOR = (
    "There is a prior CT of the chest: growth decides, which is not measured. No category is"
    " suggested."
)


def nodule_category(number: int, finding: Finding) -> NoduleCategory:
    """Return the category of one finding at baseline."""
    size = round(finding.diameter_mm, 1)
    kind = finding.verdict.texture if finding.verdict else ""
    solid = CATEGORIES[1 + sum(size >= mm for mm in (_SMALL_MM, _MEDIUM_MM, _LARGE_MM))]
    by_type = {
        "solid": (solid,) * 2,
        "part-solid": _part_solid(size),
        "ground glass": ("2" if size < _GROUND_GLASS_MM else "3",) * 2,
    }
    ranges = [by_type[kind]] if kind in by_type else list(by_type.values())
    least = min((low for low, _ in ranges), key=_RANK)
    most = max((high for _, high in ranges), key=_RANK)
    missing = () if kind in by_type else ("type",)
    if least != most and kind != "solid":
        missing = (*missing, "diameter of the solid component")
    known = kind if kind in by_type else ""
    return NoduleCategory(number, size, known, least, most, missing if least != most else ())


def _part_solid(size_mm: float) -> tuple[str, str]:
    """Return least and most: the solid component, which decides, is at most the whole."""
    if size_mm < _SMALL_MM:
        return "2", "2"
    return "3", "4A" if size_mm < _MEDIUM_MM else "4B"


def _sentence(one: NoduleCategory) -> str:
    kind = one.type or "of unknown type"
    category = "no category" if one.missing else f"category {one.least}"
    return f"Finding {one.number}: {kind}, {one.diameter_mm:.1f} mm, {category}"
