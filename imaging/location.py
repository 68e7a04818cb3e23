"""Say where a point lies: in which image, on which side, and in which zone of the lungs.

Lobes are not stated: the fissures are not found. A side or a zone is stated only where the lungs
show it plainly and the orientation of the patient is known.
"""

from dataclasses import dataclass

import numpy as np

from imaging.preprocess import Preprocessed
from imaging.volume import UNNAMED, Geometry, ImageRef, LimitationKind, Study, Triple, triple


@dataclass(frozen=True)
class Location:
    """Where a finding lies.

    Attributes:
        slice_index: of the volume, 0 at the feet.
        slices: of the volume; 0 where that is not known.
        image: of this slice; without number and UID for a volume file.
        frame_of_reference_uid: of all points in mm; empty for a volume file.
        side: ``left`` or ``right``, of the patient; empty where it is not plain.
        zone: ``upper``, ``middle`` or ``lower`` third of the lungs' height; empty where the lungs
            are not whole.
    """

    slice_index: int
    slices: int
    image: ImageRef = UNNAMED
    frame_of_reference_uid: str = ""
    side: str = ""
    zone: str = ""

    @property
    def place(self) -> str:
        """Side and zone in words, as far as they are known: ``left upper zone``, ``left lung``."""
        zone = self.zone and f"{self.zone} zone"
        return " ".join(filter(None, (self.side, zone or (self.side and "lung"))))

    @property
    def text(self) -> str:
        """For a radiologist: ``left upper zone, image 45``."""
        image = self.image
        if image.number is None:
            of = f" of {self.slices}" if self.slices else ""
            slice_ = f"slice {self.slice_index + 1}{of} from the feet"
        elif image.frame is None:
            slice_ = f"image {image.number}"
        else:
            slice_ = f"image {image.number}, frame {image.frame}"
        return ", ".join(filter(None, (self.place, slice_)))


@dataclass(frozen=True)
class Locator:
    """What a location follows from, small enough to be stored with pending reads.

    Attributes:
        origin_mm, spacing_mm, axes: geometry of the volume; ``axes`` are the world directions of
            its index axes x, y and z.
        slices: of the volume.
        images: of each slice; empty for a volume file.
        frame_of_reference_uid: of all points in mm.
        between: for each slice where the right lung ends and the left begins, x indices; the other
            way round where one reaches across the other. Empty where the lungs are not two.
        zones: z indices of the two limits between the zones; None where the lungs are not whole.
    """

    origin_mm: Triple
    spacing_mm: Triple
    axes: tuple[Triple, Triple, Triple]
    slices: int
    images: tuple[ImageRef, ...] = ()
    frame_of_reference_uid: str = ""
    between: tuple[tuple[float, float], ...] = ()
    zones: tuple[float, float] | None = None

    def locate(self, centre_mm: Triple) -> Location:
        """Return where the point ``(x, y, z)`` LPS lies."""
        direction = np.array(self.axes, dtype=np.float64).T
        index = Geometry(self.spacing_mm, self.origin_mm, direction).to_index(centre_mm)
        z, _, x = (float(value) for value in index)
        nearest = min(max(round(z), 0), self.slices - 1)
        image = self.images[nearest] if self.images else UNNAMED
        uid, side, zone = self.frame_of_reference_uid, self._side(x, nearest), self._zone(z)
        return Location(nearest, self.slices, image, uid, side, zone)

    def _side(self, x: float, z: int) -> str:
        if not self.between:
            return ""
        first, last = sorted(self.between[z])
        return "right" if x < first else "left" if x > last else ""

    def _zone(self, z: float) -> str:
        if self.zones is None:
            return ""
        lower, upper = self.zones
        return "lower" if z < lower else "middle" if z < upper else "upper"


def locator_of(study: Study, box: Preprocessed) -> Locator:
    """Return what the locations in this study follow from."""
    geometry, lungs, shown = study.volume.geometry, box.lungs, box.measures
    x, y, z = (triple(axis) for axis in geometry.direction.T)
    # a study that a child process read comes without its voxels, and so without its shape
    slices = study.volume.shape[0] if lungs is None else lungs.shape[0]
    # a whole lung has its height: a scan that is cut at apex or base does not show the thirds of it
    coverage = shown.coverage
    cut = coverage is None or any(one.side in ("apex", "base") for one in coverage.cuts)
    # where the orientation is assumed or doubtful, side and zone would be
    known = (*study.limitations, *shown.odd)
    assumed = any(one.kind is LimitationKind.ORIENTATION for one in known)
    return Locator(
        geometry.origin_mm,
        geometry.spacing_mm,
        (x, y, z),
        slices,
        study.images,
        study.frame_of_reference_uid,
        between=() if assumed else shown.between,
        zones=None if assumed or cut else shown.zones,
    )
