"""Senders for the tests of receiving, and the ports that they send to."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydicom import Dataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian
from pynetdicom import AE, evt
from pynetdicom.association import Association
from pynetdicom.sop_class import Verification

from edge.dicom_in.incoming import Limits
from edge.dicom_in.part import ReceiveMetrics
from edge.dicom_in.received import ReceivedStore
from edge.dicom_in.scp import receiving_by_dicom
from edge.dicom_in.stow import receiving_by_stow
from edge.settings.core import EdgeSettings, load_settings
from edge.telemetry import Telemetry
from tests.imaging.small_ct import SmallCt

IMAGES = SmallCt(count=12).images()


def settings_in(root: Path, **values: object) -> EdgeSettings:
    """Settings of an agent below ``root`` that receives on a free port of this machine."""
    folders = {name: root / name for name in ("inbox", "outbox", "state_dir")}
    return load_settings(**{**folders, "receive__min_free_mb": 1, **values})


@dataclass
class Port:
    """A port that receives, and what lies behind it."""

    address: str
    inbox: Path
    store: ReceivedStore
    telemetry: Telemetry

    @property
    def endpoint(self) -> tuple[str, int]:
        host, port = self.address.rsplit(":", 1)
        return host.strip("[]"), int(port)

    def counted(self, name: str, **labels: str) -> float:
        """A metric's value; 0 for none."""
        return self.telemetry.registry.get_sample_value(f"overread_edge_{name}", labels) or 0.0


@contextmanager
def dicom_port(root: Path, store: ReceivedStore | None = None, **values: object) -> Iterator[Port]:
    """A DICOM node without an agent."""
    settings = settings_in(root, **{"receive__dicom__address": "127.0.0.1:0", **values})
    settings.inbox.mkdir(exist_ok=True)
    store = store or ReceivedStore(settings.inbox, Limits.of(settings))
    telemetry = Telemetry()
    with receiving_by_dicom(settings, store, ReceiveMetrics(telemetry)) as listening:
        assert listening is not None
        yield Port(listening.address, settings.inbox, store, telemetry)


@contextmanager
def stow_port(root: Path, store: ReceivedStore | None = None, **values: object) -> Iterator[Port]:
    """A STOW-RS service without an agent."""
    settings = settings_in(root, **{"receive__stow__address": "127.0.0.1:0", **values})
    settings.inbox.mkdir(exist_ok=True)
    store = store or ReceivedStore(settings.inbox, Limits.of(settings))
    telemetry = Telemetry()
    with receiving_by_stow(settings, store, ReceiveMetrics(telemetry)) as listening:
        assert listening is not None
        yield Port(listening.address, settings.inbox, store, telemetry)


def associate(
    endpoint: tuple[str, int],
    *,
    caller: str = "SCANNER",
    called: str = "OVERREAD",
    sop_class: str = CTImageStorage,
    syntax: str = ExplicitVRLittleEndian,
    tls: object = None,
) -> Association:
    """An association that asks for one storage class, and verification."""
    ae = AE(caller)
    ae.acse_timeout = ae.dimse_timeout = ae.network_timeout = 30
    ae.add_requested_context(sop_class, syntax)
    ae.add_requested_context(Verification)
    return ae.associate(
        *endpoint,
        ae_title=called,
        tls_args=tls,  # type: ignore[arg-type]
        evt_handlers=[(evt.EVT_CONN_OPEN, _remember)],
    )


CONNECTIONS: list[Any] = []
"""Sockets of associations: pynetdicom leaves those open that the other side has closed."""


def _remember(event: evt.Event) -> None:
    CONNECTIONS.append(event.assoc.dul.socket.socket)  # type: ignore[union-attr]


def send(endpoint: tuple[str, int], images: Sequence[Dataset], **how: str) -> list[int]:
    """Send the images over one association; the status of each, -1 for no response."""
    association = associate(endpoint, **how)
    assert association.is_established
    statuses = [association.send_c_store(image) for image in images]
    association.release()
    return [int(status.get("Status", -1)) for status in statuses]


def received(inbox: Path) -> dict[str, list[str]]:
    """The folders in the inbox, and the images in each."""
    folders = [path for path in inbox.iterdir() if not path.name.startswith(".")]
    return {
        folder.name: sorted(name for name in os.listdir(folder) if name.endswith(".dcm"))
        for folder in folders
    }


def names(images: Sequence[Dataset]) -> list[str]:
    """The files in which these images are stored."""
    return sorted(f"{image.SOPInstanceUID}.dcm" for image in images)


def on_their_way(inbox: Path) -> list[str]:
    """The files of instances that are not whole."""
    return os.listdir(inbox / ".receiving")
