"""The Brock (PanCan) model: the probability that a nodule on a first screening CT is cancer.

A. McWilliams et al., Probability of cancer in pulmonary nodules detected on first screening CT, New
England Journal of Medicine 369:910-919, 2013, table 2, model 2b: the full model with spiculation.
Its participants were 50 to 75 years old, and smokers or former smokers.

It says nothing of what to do. Where an input is unknown, the reference value of the model stands
in, and the result names it.
"""

import math
from dataclasses import dataclass

from edge.clinical.sidecar import Clinical
from edge.findings import Finding
from edge.limitations import MIN_AGE, age_in_years
from imaging.location import Location
from imaging.volume import StudyHeader

MODEL = "PanCan (Brock) model 2b, McWilliams et al., NEJM 2013;369:910-919"
_INTERCEPT = -6.7892
_AGE, _MEAN_AGE = 0.0287, 62.0
_FEMALE, _FAMILY, _EMPHYSEMA = 0.6011, 0.2961, 0.2953
_SIZE, _MEAN_SIZE = -5.3854, 1.58113883
"""Of (diameter / 10 mm) to the power of -1/2, and of a nodule of 4 mm."""
_TEXTURE = {"solid": 0.0, "part-solid": 0.3770, "ground glass": -0.1276}
_UPPER, _SPICULATION = 0.6581, 0.7729
_COUNT, _MEAN_COUNT = -0.0824, 4.0
REFERENCE = f"{_MEAN_AGE:g} years, male, solid, and no for all else"
"""What stands in for inputs that are unknown."""
OF_NODULE = ("type", "upper lobe")
"""Unknown inputs that are of one nodule; the others are of the patient."""
AGES = (50.0, 75.0)
"""Of the participants, in years."""


@dataclass(frozen=True)
class BrockInputs:
    """The inputs of the model for one nodule.

    Attributes:
        diameter_mm: the longest diameter, in the paper.
        texture: ``solid``, ``part-solid`` or ``ground glass``.
        upper: whether it lies in an upper lobe.
        count: nodules of the scan.
    """

    age_years: float = _MEAN_AGE
    female: bool = False
    family_history: bool = False
    emphysema: bool = False
    diameter_mm: float = 4.0
    texture: str = "solid"
    upper: bool = False
    count: int = 1
    spiculation: bool = False


@dataclass(frozen=True)
class Brock:
    """The result for one finding.

    Attributes:
        unknown: the inputs for which the value of `REFERENCE` stands in.
    """

    probability: float
    inputs: BrockInputs
    unknown: tuple[str, ...]

    @property
    def unknown_of_nodule(self) -> tuple[str, ...]:
        """What is unknown of this nodule."""
        return tuple(one for one in self.unknown if one in OF_NODULE)

    @property
    def unknown_of_patient(self) -> tuple[str, ...]:
        """What is unknown of the patient, for every nodule alike."""
        return tuple(one for one in self.unknown if one not in OF_NODULE)


def probability(inputs: BrockInputs) -> float:
    """Return the probability of cancer in [0, 1].

    Raises:
        ValueError: the diameter is not above 0, or the texture is not one of the three.
    """
    if not inputs.diameter_mm > 0 or inputs.texture not in _TEXTURE:
        raise ValueError(f"no Brock model for {inputs.diameter_mm} mm, {inputs.texture!r}")
    size = (inputs.diameter_mm / 10) ** -0.5 - _MEAN_SIZE
    logit = (
        _INTERCEPT
        + _AGE * (inputs.age_years - _MEAN_AGE)
        + _FEMALE * inputs.female
        + _FAMILY * inputs.family_history
        + _EMPHYSEMA * inputs.emphysema
        + _SIZE * size
        + _TEXTURE[inputs.texture]
        + _UPPER * inputs.upper
        + _COUNT * (inputs.count - _MEAN_COUNT)
        + _SPICULATION * inputs.spiculation
    )
    return 1 / (1 + math.exp(-logit))


def brock_of(
    finding: Finding, location: Location | None, count: int, header: StudyHeader, clinical: Clinical
) -> Brock | None:
    """Return the result for a finding among ``count``; None for a child.

    ``location`` gives the zone, which stands in for the lobe.
    """
    age = age_in_years(header.age)
    if not finding.diameter_mm > 0 or (age is not None and age < MIN_AGE):
        return None
    texture = finding.verdict.texture if finding.verdict else ""
    zone = location.zone if location else ""
    # in the order in which unknown inputs are named
    known: dict[str, object] = {
        "age": age,
        "sex": {"F": "female", "M": "male"}.get(header.sex.strip().upper()),
        "family history of lung cancer": clinical.family_history_of_lung_cancer,
        "emphysema": clinical.emphysema,
        "upper lobe": zone or None,
        "spiculation": clinical.spiculation,
        "type": texture if texture in _TEXTURE else None,
    }
    inputs = BrockInputs(
        age_years=round(_MEAN_AGE if age is None else age, 1),
        female=known["sex"] == "female",
        family_history=bool(clinical.family_history_of_lung_cancer),
        emphysema=bool(clinical.emphysema),
        diameter_mm=round(finding.diameter_mm, 1),
        texture=texture if texture in _TEXTURE else "solid",
        upper=zone == "upper",
        count=max(1, count),
        spiculation=bool(clinical.spiculation),
    )
    unknown = tuple(name for name, value in known.items() if value is None)
    return Brock(probability(inputs), inputs, unknown)


def notes_of(header: StudyHeader, clinical: Clinical) -> tuple[str, ...]:
    """Say where the inputs of a study differ from those of the paper."""
    notes = [
        "the diameter is that of the sphere of the nodule's volume, not the longest one",
        "the upper zone of the lungs stands in for the upper lobe",
    ]
    age = age_in_years(header.age)
    if age is not None and not AGES[0] <= age <= AGES[1]:
        notes.append(f"the model was made from people of {AGES[0]:g} to {AGES[1]:g} years")
    if clinical.smoking == "never":
        notes.append("the model was made from people who smoke or have smoked")
    return tuple(notes)
