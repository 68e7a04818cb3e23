"""The limitations of a study: what lies outside the conditions of the models' calibration.

A report with a limitation guarantees nothing, and says why under its header.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from edge.findings import Finding
from edge.guarantee import Terms
from imaging.coverage import Coverage
from imaging.lung_tissue import LungPart
from imaging.plausibility import HU, RIBS, SIZE
from imaging.preprocess import ChestMeasures, Preprocessed
from imaging.volume import Geometry, Limitation, LimitationKind, Study, StudyHeader

MAX_OPAQUE_SHARE = 0.025
"""Of the lungs. All 18 whole and partial scans that we have lie below 0.014, with masses of 36 mm,
metastases, and atelectasis behind both lungs; patches of ground glass of 5 % lie above 0.04."""
MIN_OPAQUE_SHARE = 0.01
"""Enough where findings are patches: many, and large. Where it is less they are metastases."""
PATCH_MM, MANY_PATCHES = 20.0, 4
"""No scan that we have has two findings of 20 mm and more."""
MIN_SHARE = defaultdict(lambda: 0.35, whole=0.5)
"""Of the air on the other side, of all of it and of a third or half. All 15 whole scans that we
have lie above 0.6 and 0.5, also with a mass of 36 mm; a field of view of one lung lies at 0.1."""
MAX_EMPTY_ML, MAX_EMPTY_SHARE = 75.0, 0.08
"""Air without lung tissue or vessels, in a side, and its share of a part. All 18 whole and partial
scans that we have lie below 21 ml and 0.03, the most in lungs of -900 HU."""
MAX_NODULE_MM = 30.0
"""A larger lesion is a mass by definition; calibration had nodules. One alone may be a tumour."""
MAX_FINDINGS = 24
"""Twice as many as any patient of calibration had."""
MAX_ANGLE = 10.0
"""Degrees between the images' axes and the patient's: 0 in all scans that we have."""
MIN_AGE = 18
"""Of the patients in training and tests, in years."""
MAX_THICKNESS_MM = 3.0
"""The thickest slices of the scans in calibration, those of LUNA16 (Setio et al., Medical Image
Analysis 42:1-13, 2017). Thick slices at a small distance blur a nodule."""
_ODD = {
    SIZE: (
        "The lungs do not have the size of an adult's: {}. The stated scale is wrong, or part of "
        "the lungs is not aerated or not in the images."
    ),
    RIBS: "This may not be a patient's chest: {}.",
    HU: "The values of the images may not be HU: {}.",
}
_DAYS = {"D": 1.0, "W": 7.0, "M": 30.4, "Y": 365.25}
_PHASES = {"ANGIO", "ANGIOGRAPHY", "CTA", "CTPA", "ARTERIAL", "DELAYED", "BIPHASIC", "TRIPHASIC"}
"""Words for phases of contrast that no scan of the calibration is known to have."""
_ENDS = ("apex", "base")


def limitations_of(
    study: Study, box: Preprocessed, findings: Sequence[Finding], terms: Terms | None = None
) -> tuple[Limitation, ...]:
    """Return the limitations that the files, the header, the lung box and the findings show.

    ``terms`` say what calibration knew; without them the model has no guarantee to lose.
    """
    shown = box.measures
    cut = (shown.coverage and [*_of_coverage(shown.coverage)]) or [*_of_lost_air(shown.parts)]
    cut += _of_empty_air(shown.parts)
    whole = sorted(part.air_ml for part in shown.parts if part.name == "whole")
    has_cut = bool(whole) and whole[0] < MIN_SHARE["whole"] * whole[1]
    has_cut |= bool(shown.coverage and shown.coverage.cuts)
    odd = _of_plausibility(shown, has_cut=has_cut)
    if any(one.kind is LimitationKind.ORIENTATION for one in shown.odd):
        cut, odd = [], iter(())  # these follow from it
    slice_mm = study.volume.geometry.spacing_mm[0]
    scan = _of_acquisition(study.header, slice_mm, terms) if terms else ()
    return (
        *study.limitations,
        *_each(LimitationKind.COVERAGE, cut),
        *odd,
        *shown.odd,
        *_each(LimitationKind.ORIENTATION, _of_axes(study.volume.geometry)),
        *_each(LimitationKind.DIFFUSE, _of_pattern(shown, findings)),
        *_each(LimitationKind.PATIENT, _of_patient(study.header, terms)),
        *_each(LimitationKind.ACQUISITION, scan),
    )


def _each(kind: LimitationKind, texts: Iterable[str]) -> Iterator[Limitation]:
    return (Limitation(kind, text) for text in texts)


def _of_coverage(coverage: Coverage) -> Iterator[str]:
    """Say at which sides the volume ends inside the lungs."""
    for what, cuts in {
        "The scan ends inside the lungs at the": [c for c in coverage.cuts if c.side in _ENDS],
        "The field of view cuts the lungs at the": [
            c for c in coverage.cuts if c.side not in _ENDS
        ],
    }.items():
        if cuts:
            sides = " and the ".join(f"{cut.side} ({cut.area_cm2:.0f} cm² of lung)" for cut in cuts)
            yield f"{what} {sides}; what lies beyond was not read."


def _of_lost_air(parts: Sequence[LungPart]) -> Iterator[str]:
    """Say if one side holds much less air than the other; a scan that cuts lung says that."""
    first, second = parts[: len(parts) // 2], parts[len(parts) // 2 :]
    for side, other in ((first, second), (second, first)):
        pairs = [(a.name, a.air_ml, b.air_ml) for a, b in zip(side, other, strict=True)]
        low = [f"{name} {a / b:.0%}" for name, a, b in pairs if a < MIN_SHARE[name] * b]
        if low:
            yield (
                f"The {side[0].side} side of the chest holds only a part of the air of the other "
                f"side ({', '.join(low)}). Lung may lie outside the field of view, be removed, or "
                "be filled or collapsed; what is not aerated was not read reliably."
            )


def _of_empty_air(parts: Sequence[LungPart]) -> Iterator[str]:
    """Say where a side holds air that is not lung tissue with vessels."""
    for found in (parts[: len(parts) // 2], parts[len(parts) // 2 :]):
        if any(p.empty_ml > min(MAX_EMPTY_ML, MAX_EMPTY_SHARE * p.air_ml) for p in found):
            whole_ml = found[0].empty_ml
            most = ", ".join(part.name for part in found[1:] if part.empty_ml > 0.4 * whole_ml)
            yield (
                f"On the {found[0].side} side of the chest {whole_ml:.0f} ml of air hold no lung "
                f"tissue with vessels (most: {most}): a pneumothorax, a removed lung, bullae, "
                "emphysema, or lost image data. What lies there was not read reliably."
            )


def _of_plausibility(shown: ChestMeasures, *, has_cut: bool) -> Iterator[Limitation]:
    """Say what does not look like an adult's chest in HU; cut lungs have no known size."""
    for subject, sentence in _ODD.items():
        texts = [text for of, text in shown.implausible if of == subject]
        if texts and not (has_cut and subject == SIZE):
            # where lung is not aerated, coverage is not complete
            kind = LimitationKind.COVERAGE if subject == SIZE else LimitationKind.PLAUSIBILITY
            yield Limitation(kind, sentence.format(", ".join(texts)))


def _of_axes(geometry: Geometry) -> Iterator[str]:
    """Say if the images lie obliquely in the patient."""
    along = float(np.diagonal(geometry.direction).min())
    angle = float(np.degrees(np.arccos(np.clip(along, -1, 1))))
    if angle > MAX_ANGLE:
        yield (
            f"The images lie {angle:.0f} degrees oblique to the patient's axes, "
            f"expected at most {MAX_ANGLE:g} degrees: the models know axial images only."
        )


def _of_pattern(shown: ChestMeasures, findings: Sequence[Finding]) -> Iterator[str]:
    """Say if so much of the lungs is not aerated that the disease is diffuse, not nodular."""
    signs = []
    opaque = shown.opaque_share or 0.0
    patches = sum(finding.diameter_mm >= PATCH_MM for finding in findings)
    if opaque >= (MAX_OPAQUE_SHARE if patches < MANY_PATCHES else MIN_OPAQUE_SHARE):
        signs.append(f"{opaque:.1%} of the lungs are ground glass or consolidation")
    large = [finding for finding in findings if finding.diameter_mm > MAX_NODULE_MM]
    if len(large) > 1:
        signs.append(f"{len(large)} findings are larger than {MAX_NODULE_MM:g} mm")
    elif large and large[0].diameter_mm > 2 * MAX_NODULE_MM:
        signs.append(f"a finding measures {large[0].diameter_mm:.0f} mm")
    if len(findings) > MAX_FINDINGS:
        signs.append(f"there are {len(findings)} findings")
    if signs:
        what = ", and ".join(signs)
        yield f"The pattern lies outside what the models know: {what}. They know single nodules."


def _of_patient(header: StudyHeader, terms: Terms | None) -> Iterator[str]:
    """Say if the patient is, or may be, a child."""
    least = MIN_AGE if terms is None else terms.min_age
    years = age_in_years(header.age)
    if years is None:
        yield f"The patient's age is not stated; the models know adults from {least} years only."
    elif years < least:
        age = f"{years:.0f} years" if years >= 2 else f"{12 * years:.0f} months"
        yield f"The patient is {age} old; the models know adults from {least} years only."


def _of_acquisition(header: StudyHeader, slice_mm: float, terms: Terms) -> Iterator[str]:
    """Say what about the scan is not known from calibration: slices, kernel, contrast."""
    if slice_mm > terms.slice_mm + 0.05:  # so much thicker is still the same
        yield (
            f"Slices are {slice_mm:.3g} mm apart, in calibration at most {terms.slice_mm:.3g} mm."
        )
    thickness, most = header.slice_thickness_mm, max(MAX_THICKNESS_MM, terms.slice_mm)
    if thickness > most + 0.05:
        yield f"Slices are {thickness:.3g} mm thick, in calibration at most {most:.3g} mm."
    # a header may name several kernels; iterative reconstruction adds a suffix to the name
    names = [name.strip() for name in header.kernel.split("\\") if name.strip()]
    known = ", ".join(terms.kernels) or "none"
    if not names:
        yield f"The reconstruction kernel is not stated; known from calibration: {known}."
    for name in names:
        if name.upper() not in terms.kernels:
            yield f"The reconstruction kernel {name} is not known from calibration ({known})."
    if header.contrast and not terms.contrast:
        yield "Contrast medium was given; calibration is not known to have had such scans."
    words = set(re.findall(r"[A-Z]+", header.series_description.upper()))
    for word in sorted(words & _PHASES):
        yield f"The series is named {word}: calibration is not known to have had this phase."


def age_in_years(text: str) -> float | None:
    """Return the age that DICOM writes as 045Y, 018M, 003W or 010D; None if it is none."""
    match = re.fullmatch(r"(\d{1,3})([DWMY])", text.strip().upper())
    return int(match[1]) * _DAYS[match[2]] / _DAYS["Y"] if match else None
