"""Build the key object selection: the source images in which the findings lie."""

from collections.abc import Mapping
from typing import Any

from highdicom.ko import KeyObjectSelection, KeyObjectSelectionDocument
from pydicom import Dataset
from pydicom.sr.codedict import codes

from edge.dicom_out.errors import NotExportable
from edge.dicom_out.identity import Device, Kind, complete, general, names_of
from edge.dicom_out.planes import nearest_plane, planes_of
from edge.dicom_out.subject import Source


def key_images(report: Mapping[str, Any], source: Source, device: Device) -> Dataset:
    """Return the selection of the image nearest to the centre of each finding.

    Possible findings are left out: most of them are no nodules.

    Raises:
        NotExportable: there is no finding, or the images have no position.
    """
    if not report["findings"]:
        raise NotExportable("there is no finding")
    names, planes = names_of(report), planes_of(source)
    images: dict[str, Dataset] = {}
    lines = []
    for values in report["findings"]:
        plane = nearest_plane(planes, values["centre_mm"])
        images.setdefault(str(plane.image.SOPInstanceUID), plane.image)
        number = plane.image.get("InstanceNumber")
        frame = "" if plane.frame is None else f", frame {plane.frame}"
        lines.append(f"finding {values['number']} in image {number}{frame}")
    text = f"{report['disclaimer']} Report version {names.version}: {'; '.join(lines)}."
    made = KeyObjectSelectionDocument(
        evidence=list(images.values()),
        content=KeyObjectSelection(
            document_title=codes.DCM.OfInterest,
            referenced_objects=list(images.values()),
            description=text,
        ),
        **general(Kind.KEY_IMAGES, names, device),
    )
    complete(made, source, names)
    return made
