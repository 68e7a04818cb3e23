"""Orthanc, a real archive, as a process: DICOM, DICOMweb and its own interface."""

from __future__ import annotations

import json
import shutil
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evaluation.common.processes import free_ports, running
from evaluation.errors import MissingProgram

DICOMWEB_PLUGIN = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")
REMEDY = "Install it (Debian: apt-get install orthanc orthanc-dicomweb)"
START_S = 60.0


@dataclass(frozen=True)
class Orthanc:
    """A running Orthanc that takes what anybody on this machine sends."""

    ae_title: str
    dicom_port: int
    http_port: int

    @property
    def url(self) -> str:
        """Of its own interface."""
        return f"http://127.0.0.1:{self.http_port}"

    @property
    def dicomweb_url(self) -> str:
        """Of QIDO-RS, WADO-RS and STOW-RS."""
        return f"{self.url}/dicom-web"

    def answers(self) -> bool:
        """Return whether it has started."""
        try:
            self.get("system")
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            return False
        return True

    def get(self, path: str) -> Any:
        """Return what its interface answers, as JSON."""
        with urllib.request.urlopen(f"{self.url}/{path}", timeout=30) as answer:
            return json.load(answer)

    def found(self, sop_instance_uid: str) -> list[dict[str, Any]]:
        """Return what QIDO-RS finds of one instance, as DICOM JSON."""
        path = f"dicom-web/instances?SOPInstanceUID={sop_instance_uid}"
        instances: list[dict[str, Any]] = self.get(path)
        return instances


def is_installed() -> bool:
    """Return whether Orthanc and its DICOMweb plugin are on this machine."""
    return shutil.which("Orthanc") is not None and DICOMWEB_PLUGIN.is_file()


@contextmanager
def orthanc(folder: Path, **configuration: Any) -> Iterator[Orthanc]:
    """Run an Orthanc with all its files in ``folder``, on free ports of this machine alone.

    Raises:
        MissingProgram: it is not installed.
        ServiceFailed: it did not start.
    """
    if not is_installed():
        raise MissingProgram("Orthanc with DICOMweb", REMEDY)
    server = Orthanc("ORTHANC", *free_ports(2))
    config = folder / "orthanc.json"
    values = {
        "Name": "Overread",
        "StorageDirectory": str(folder / "orthanc"),
        "IndexDirectory": str(folder / "orthanc"),
        "Plugins": [str(DICOMWEB_PLUGIN)],
        "DicomAet": server.ae_title,
        "DicomPort": server.dicom_port,
        "DicomAlwaysAllowStore": True,
        "DicomAlwaysAllowEcho": True,
        "DicomCheckCalledAet": False,
        "HttpPort": server.http_port,
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": False,
        "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
    }
    config.write_text(json.dumps(values | configuration))
    with running("Orthanc", ("Orthanc", str(config)), folder / "orthanc.log") as process:
        process.wait_until(server.answers, "answer", START_S)
        yield server
