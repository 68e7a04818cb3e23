"""The slices of a study, and the marks of its findings: what the viewer in the browser asks for."""

import zlib
from collections.abc import Mapping
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from edge.report.evidence import PlacedOutline
from edge.report.model import Report
from edge.status.state import SiteState
from edge.status.views import Views
from edge.status.volumes import Volumes, Voxels, outline_on
from edge.store.record import Record
from imaging.render import Plane


class Slices:
    """The handlers."""

    def __init__(self, state: SiteState, views: Views, volumes: Volumes) -> None:
        self._state, self._views, self._volumes = state, views, volumes

    def volume(self, request: Request) -> Response:
        """Say whether the slices can be shown, and what the viewer needs to know."""
        study = study_of(request, self._state)
        opening = self._volumes.opening(study)
        voxels = self._volumes.voxels(study) if opening.state == "ready" else None
        if voxels is None:
            return JSONResponse({"state": opening.state, "reason": opening.reason})
        self._views.record(request, "images", study_key=study.id)
        report, outlines = self._state.report(study), self._state.outlines(study)
        if self._state.report(study) is not report:  # a new version, between the two
            outlines = {}
        return JSONResponse(
            {
                "state": "ready",
                "shape": voxels.hu.shape,
                "spacing_mm": voxels.geometry.spacing_mm,
                "images": voxels.images,
                "marks": _marks(report, outlines, voxels),
            }
        )

    def open_volume(self, request: Request) -> Response:
        """Begin to read the images of a study."""
        study = study_of(request, self._state)
        report = self._state.report(study)
        opening = self._volumes.open(study, report.series_uid if report else "")
        return JSONResponse({"state": opening.state, "reason": opening.reason})

    def slice(self, request: Request) -> Response:
        """Send one slice: HU as int16, little-endian, row by row."""
        study = study_of(request, self._state)
        voxels = self._volumes.voxels(study)
        planes = {plane.title.lower(): plane for plane in Plane}
        plane = planes.get(request.path_params["plane"])
        if voxels is None or plane is None or self._state.source(study) is None:
            raise HTTPException(404, "There is no such slice.")
        try:
            hu = voxels.slice(plane, request.path_params["index"])
        except IndexError as error:
            raise HTTPException(404, f"There is no such slice: {error}.") from error
        self._views.record(request, "images", study_key=study.id)
        rows, columns = hu.shape
        packed = zlib.compress(hu.astype("<i2").tobytes(), 1)
        headers = {"content-encoding": "deflate", "x-rows": str(rows), "x-columns": str(columns)}
        return Response(packed, media_type="application/octet-stream", headers=headers)


def study_of(request: Request, state: SiteState) -> Record:
    """Return the study that the path names.

    Raises:
        HTTPException: there is none.
    """
    study = state.study(request.path_params["key"])
    if study is None:
        raise HTTPException(404, "There is no such study.")
    return study


def _marks(
    report: Report | None, outlines: Mapping[int, PlacedOutline], voxels: Voxels
) -> list[dict[str, Any]]:
    """Return findings and possible findings with their place in the voxels, ``(z, y, x)``.

    ``outline`` is there for those that have one.
    """
    geometry, shape = voxels.geometry, voxels.hu.shape
    listed = report.listed if report else ()
    certain = len(report.findings) if report else 0
    return [
        {
            "number": number,
            "possible": at >= certain,
            "index": [round(float(value), 2) for value in geometry.to_index(item.centre_mm)],
            "diameter_mm": item.diameter_mm,
            "probability": item.probability,
            "outline": outline_on(outlines[number], geometry, shape)
            if number in outlines
            else None,
        }
        for at, (number, item) in enumerate(listed)
    ]
