"""The report of a study, with its findings in the voxels of the volume that the caller gave."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from html import escape
from math import prod
from typing import Any

import numpy as np

from edge.findings import BoolArray, Finding, Outline
from edge.report import model
from edge.report.evidence import PlacedOutline
from edge.report.model import NOT_A_DEVICE
from edge.report.page import render_page
from edge.report.pictures import Pictures
from edge.report.serialize import report_to_dict
from imaging.volume import Geometry, Grid, triple

_SPHERE = 16  # voxels across its diameter, before it is placed in the volume


@dataclass(frozen=True, eq=False)
class Report(model.Report):
    """The report of one study; its attributes are those of `edge.report.model.Report`.

    Indices are in the volume that the caller gave: ``index_zyx`` of findings and candidates, and
    the ``outline`` of findings, whose ``mask`` begins at voxel ``start``. Axes are ``(z, y, x)``:
    those of an array as it is; of a volume file and a SimpleITK image those of
    ``SimpleITK.GetArrayFromImage``, which nibabel has in the order ``(x, y, z)``; of DICOM to the
    head, to the back and to the patient's left, as in the volume of `read_study`.

    Attributes:
        grid: ``shape`` of that volume, and its ``geometry``: spacing, origin and direction.
        pictures: JPEG by file name, ``overview.jpg`` first, of 20 findings at most.

    >>> report = overread.screen("ct/")
    >>> report.mask_of(report.findings[0]).shape == report.grid.shape
    True
    """

    grid: Grid = field(kw_only=True)
    pictures: Pictures = field(default_factory=dict, kw_only=True, repr=False)

    def _repr_html_(self) -> str:
        """Return the page for a notebook, in a frame without scripts; the line is for others."""
        page = escape(render_page(self, self.pictures))
        frame = f'<iframe sandbox style="width: 100%; height: 40em" srcdoc="{page}"></iframe>'
        return f"<p>{escape(self.result)} <strong>{NOT_A_DEVICE}</strong></p>{frame}"

    def mask_of(self, finding: Finding) -> BoolArray:
        """Return the voxels of a finding or possible finding: bool, of the shape of ``grid``.

        They are those of its ``outline``, which only a second reading of the cloud gives. Without
        one they are a sphere of the finding's diameter. The mask has one voxel at least.

        Raises:
            ValueError: the finding is not one of this report.
        """
        if not any(one is finding for _, one in self.listed):
            raise ValueError("the finding is not one of this report")
        outline = finding.outline or _on(self.grid, _sphere(finding), finding.index_zyx)
        mask = np.zeros(self.grid.shape, bool)
        inside = (slice(a, a + n) for a, n in zip(outline.start, outline.mask.shape, strict=True))
        mask[tuple(inside)] = outline.mask
        return mask

    def to_dict(self) -> dict[str, Any]:
        """Return the values of ``report.json``."""
        return report_to_dict(self)

    def to_table(self) -> list[dict[str, Any]]:
        """Return a row for each finding and possible finding, for example for a DataFrame.

        Values are those of ``report.json``, None where not known. ``x_mm``, ``y_mm`` and ``z_mm``
        are LPS; ``z``, ``y`` and ``x`` are indices as in ``index_zyx``.
        """
        values = self.to_dict()
        both = [*values["findings"], *values["possible_findings"]]
        return [
            _some(values, "study_key", "source", "series_uid")
            | {"is_finding": finding in self.findings, "is_outlined": finding.outline is not None}
            | _some(row, "number", "probability", "diameter_mm", "volume_mm3", "edge_score")
            | dict(zip(("x_mm", "y_mm", "z_mm"), row["centre_mm"], strict=True))
            | {axis: round(at, 2) for axis, at in zip("zyx", finding.index_zyx, strict=True)}
            | _some(row["location"] or {}, "side", "zone", "image_number")
            | _some(row["verdict"] or {}, "texture", "malignancy")
            for row, (_, finding) in zip(both, self.listed, strict=True)
        ]


def _some(values: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: values.get(name) for name in names}


def in_volume(report: model.Report, outlines: Mapping[int, PlacedOutline], grid: Grid) -> Report:
    """Return the report with its indices and outlines in the voxels of ``grid``.

    ``outlines`` are by number of finding or possible finding.
    """
    listed, count = list[Finding](), len(report.findings)
    for number, finding in report.listed:
        index, placed = triple(grid.geometry.to_index(finding.centre_mm)), outlines.get(number)
        outline = _on(grid, placed, index) if placed else None
        listed.append(replace(finding, index_zyx=index, outline=outline))
    values = {one.name: getattr(report, one.name) for one in fields(report)}
    values |= {"findings": tuple(listed[:count]), "possible": tuple(listed[count:])}
    values["decisions"] = tuple(
        replace(decision, candidate=replace(decision.candidate, index_zyx=triple(index)))
        for decision in report.decisions
        for index in [grid.geometry.to_index(decision.candidate.centre_mm)]
    )
    return Report(**values, grid=grid)


def _on(grid: Grid, outline: PlacedOutline, index_zyx: tuple[float, ...]) -> Outline:
    """Return an outline in the voxels of a volume; the nearest one where it covers none."""
    nearest = np.clip(np.rint(index_zyx).astype(int), 0, np.array(grid.shape) - 1)
    z, y, x = (int(value) for value in nearest)
    start, mask = outline.on(grid.geometry, grid.shape) or ((z, y, x), np.ones((1, 1, 1), bool))
    return Outline(mask, start, prod(grid.geometry.spacing_mm))


def _sphere(finding: Finding) -> PlacedOutline:
    middle, spacing_mm = (_SPHERE - 1) / 2, finding.diameter_mm / _SPHERE
    away = np.linalg.norm(np.indices((_SPHERE,) * 3) - middle, axis=0)
    origin_mm = triple(np.array(finding.centre_mm) - middle * spacing_mm)
    return PlacedOutline(away <= _SPHERE / 2, Geometry((spacing_mm,) * 3, origin_mm))
