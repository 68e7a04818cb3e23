"""The limits of the service: bounds, quotas, checks of a header and an ROI, padding of small ROIs.

An ROI may be smaller than what the model reads. It is then mirrored to the model's size, and the
mask in the model's answer is cropped to the ROI.
"""

import asyncio
import contextlib
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from imaging.roi import cut_roi, roi_start
from imaging.volume import WINDOW_HU, UInt8Array
from protos.errors import Draining, InvalidRequest, Overloaded, TooLarge, VersionMismatch
from protos.messages import Description, Header, Priority, Roi

Shape = tuple[int, int, int]
"""Voxels (z, y, x)."""

SITE_SHARE = 0.5
"""Part of the open streams that one site may have; while other sites are active, also the part of
the queue, and of its share of the time to a deadline, up to which it may fill the queue."""

STAT_RESERVE = 0.1
"""Part of the open streams that is for stat alone."""

MIN_SIDE_DIVISOR = 3
"""An ROI must be at least a third of the model's shape along each axis."""

MAX_KEY_CHARACTERS = 128


@dataclass(frozen=True)
class Bounds:
    """Bounds that are right for every site; only tests take others.

    Attributes:
        max_rois: largest number of ROIs in a study.
        max_queued_rois: largest number of ROIs that wait for an instance of the model.
        max_budget_s: longer budgets are shortened to this; also the longest time for the body of an
            HTTP request.
        idle_timeout_s: longest wait for the header of a stream, for an ROI while none of the stream
            is waiting or being read, and for more of the body of an HTTP request.
        return_margin_s: part of each budget that is kept for the answer's way back, at most half.
        max_transfers: largest number of models that are sent at once.
        transfer_timeout_s: longest time of one transfer; the caller continues it with another.
    """

    max_rois: int = 100
    max_queued_rois: int = 512
    max_budget_s: float = 600.0
    idle_timeout_s: float = 10.0
    return_margin_s: float = 0.01
    max_transfers: int = 4
    transfer_timeout_s: float = 600.0


def check_header(header: Header, limits: Description) -> None:
    """Reject a header that cannot open a stream of the service with these limits.

    Raises:
        InvalidRequest: the key is missing, key or version is too long, or the budget is not
            positive and finite.
        TooLarge: more ROIs are announced than a study may have.
        VersionMismatch: another major version of the model is expected.
    """
    for name, value, least in (
        ("study_key", header.study_key, 1),
        ("model_version", header.model_version, 0),
    ):
        if not least <= len(value) <= MAX_KEY_CHARACTERS:
            raise InvalidRequest(
                f"{name} has {len(value)} characters, expected {least} to {MAX_KEY_CHARACTERS}",
                field=f"header.{name}",
                limit=MAX_KEY_CHARACTERS,
            )
    if not (math.isfinite(header.budget_s) and header.budget_s > 0):
        raise InvalidRequest(
            f"budget_s is {header.budget_s}, expected a positive number of seconds",
            field="header.budget_s",
        )
    if header.roi_count > limits.max_rois:
        raise TooLarge(
            f"{header.roi_count} ROIs announced, the limit is {limits.max_rois}",
            field="header.roi_count",
            limit=limits.max_rois,
        )
    # compatible: the same text before the first dot, or all of a text without dots (a digest)
    expected, (served,) = header.model_version, limits.models.values()
    if expected and expected.partition(".")[0] != served.partition(".")[0]:
        raise VersionMismatch(  # not the whole of a caller's own text: it may be long
            f"the caller expects model version {expected!r:.100}, the service has {served!r}",
            field="header.model_version",
        )


def check_roi(roi: Roi, limits: Description) -> None:
    """Reject an ROI that the model cannot read, or would read wrongly.

    Raises:
        TooLarge: it has more voxels than an ROI may have.
        InvalidRequest: its shape, window, spacing or score is out of range.
    """
    if roi.voxels.size > limits.max_roi_voxels:
        raise TooLarge(
            f"the ROI has {roi.voxels.size} voxels, the limit is {limits.max_roi_voxels}",
            field="roi.voxels",
            limit=limits.max_roi_voxels,
        )
    sides = zip(roi.voxels.shape, limits.roi_shape, strict=True)
    if not all(full // MIN_SIDE_DIVISOR <= side <= full for side, full in sides):
        raise InvalidRequest(
            f"shape {roi.voxels.shape}, expected at most {limits.roi_shape} "
            f"and at least 1/{MIN_SIDE_DIVISOR} of it along each axis",
            field="roi.shape",
        )
    for name, is_valid, expected in (
        ("window_hu", roi.window_hu == WINDOW_HU, WINDOW_HU),
        ("spacing_mm", all(0.1 <= spacing <= 5.0 for spacing in roi.spacing_mm), "0.1 to 5.0"),
        ("edge_score", 0.0 <= roi.edge_score <= 1.0, "0 to 1"),
    ):
        if not is_valid:
            said = f"{name} {getattr(roi, name)}, expected {expected}"
            raise InvalidRequest(said, field=f"roi.{name}")


def pad(voxels: UInt8Array, full: Shape) -> UInt8Array:
    """Return uint8 of shape ``full``: ``voxels`` ``(z, y, x)``, mirrored at their borders.

    The middle voxel stays the middle voxel, as `imaging.roi.cut_roi` counts it.
    """
    if voxels.shape == full:
        return voxels
    return cut_roi(voxels, np.array(voxels.shape) // 2, full)


def crop_mask(mask: npt.NDArray[np.bool_], shape: tuple[int, ...]) -> npt.NDArray[np.bool_]:
    """Return the part of ``mask`` that an ROI of ``shape`` covered before it was padded."""
    start = roi_start(np.array(mask.shape) // 2, shape)
    return mask[tuple(slice(a, a + side) for a, side in zip(start, shape, strict=True))]


STUDIES, REQUESTS = "open_streams", "open_requests"
"""Kinds of open streams, as metrics and the log name them."""


class OpenStreams:
    """The open studies and inference requests: their quotas, and the end of the service.

    ``most`` may be open in all, and the part `SITE_SHARE` of it of each site. The last of all are
    for stat studies (`STAT_RESERVE`), and a site may exceed its part by these.

    Attributes:
        counts: how many of each kind are open.
        is_draining: whether new ones are rejected.
        stopped: done once the open ones must end as well.
    """

    def __init__(self, most: int) -> None:
        self._most, self._site_quota = most, max(1, int(SITE_SHARE * most))
        self._reserved = int(STAT_RESERVE * most)
        self._sites, self.counts = Counter[str](), Counter[str]()
        self.is_draining = False
        self.stopped: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._idle = asyncio.Event()
        self._idle.set()

    def __len__(self) -> int:
        return self._sites.total()

    def drain(self) -> None:
        """Reject new ones as `Draining` from now on; open ones continue."""
        self.is_draining = True

    def stop(self) -> None:
        """Reject new ones, and set ``stopped``: its waiters end the open ones."""
        self.drain()
        if not self.stopped.done():
            self.stopped.set_result(None)

    async def wait_until_idle(self) -> None:
        """Wait until none is open."""
        await self._idle.wait()

    def check_draining(self) -> None:
        """Raise `Draining` when the service is being stopped."""
        if self.is_draining:
            raise Draining("the service is being stopped; use another one, or retry later")

    @contextlib.contextmanager
    def opened(self, site: str, kind: str) -> Iterator[None]:
        """Count a stream of ``site`` as open while entered; `check_priority` follows its header.

        Raises:
            Draining: the service is being stopped.
            Overloaded: all streams are open, or the site has used up its quota and stat's reserve.
        """
        self.check_draining()
        if (total := len(self)) >= self._most:
            full = f"{total} streams are open, the limit is {self._most}"
            raise Overloaded(full, limit=self._most)
        if self._sites[site] >= self._site_quota + self._reserved:
            raise Overloaded(self._over_quota(site), of_site=True)
        self._sites[site] += 1
        self.counts[kind] += 1
        self._idle.clear()
        try:
            yield
        finally:
            self._sites -= Counter((site,))
            self.counts[kind] -= 1
            if not self._sites:
                self._idle.set()

    def check_priority(self, site: str, priority: Priority) -> None:
        """Raise `Overloaded` for what is not stat, in stat's reserve or beyond its site's quota."""
        if priority is Priority.STAT:
            return
        for_routine = self._most - self._reserved
        if len(self) > for_routine:
            raise Overloaded(
                f"{for_routine} streams are open, the last {self._reserved} are reserved for stat"
            )
        if self._sites[site] > self._site_quota:
            raise Overloaded(self._over_quota(site), of_site=True)

    def _over_quota(self, site: str) -> str:
        return f"site {site} has {self._sites[site]} open streams; its quota is {self._site_quota}"
