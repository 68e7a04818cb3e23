"""Orthanc, a real archive, as a process of a test: DICOM, DICOMweb and its own interface."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

DICOMWEB_PLUGIN = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")
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

    def get(self, path: str) -> Any:
        """What its interface answers, as JSON."""
        with urllib.request.urlopen(f"{self.url}/{path}", timeout=30) as answer:
            return json.load(answer)

    def found(self, sop_instance_uid: str) -> list[dict[str, Any]]:
        """What QIDO-RS finds of one instance, as DICOM JSON."""
        path = f"dicom-web/instances?SOPInstanceUID={sop_instance_uid}"
        instances: list[dict[str, Any]] = self.get(path)
        return instances


@contextmanager
def orthanc(folder: Path, **configuration: Any) -> Iterator[Orthanc]:
    """Run an Orthanc with all its files in ``folder``; the test skips where there is none."""
    program = shutil.which("Orthanc")
    if program is None or not DICOMWEB_PLUGIN.is_file():
        pytest.skip("needs Orthanc with its DICOMweb plugin (apt-get install orthanc-dicomweb)")
    server = Orthanc("ORTHANC", *_free_ports(2))
    config = folder / "orthanc.json"
    values = {
        "Name": "test",
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
    with (folder / "orthanc.log").open("wb") as log:
        process = subprocess.Popen((program, str(config)), stdout=log, stderr=log)
    try:
        _wait(server, process, folder / "orthanc.log")
        yield server
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait(server: Orthanc, process: subprocess.Popen[bytes], log: Path) -> None:
    until = time.monotonic() + START_S
    while process.poll() is None and time.monotonic() < until:
        try:
            server.get("system")
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            time.sleep(0.05)
        else:
            return
    pytest.fail(f"Orthanc did not start:\n{log.read_text(errors='replace')[-2000:]}")


def _free_ports(count: int) -> list[int]:
    """Ports that were free a moment ago."""
    servers = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [int(server.getsockname()[1]) for server in servers]
    for server in servers:
        server.close()
    return ports
