"""A site with reports, images and refused studies, and its status page."""

import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from pydicom.uid import SegmentationStorage
from starlette.types import ASGIApp

from edge.audit import Event
from edge.dicom_out.exports import DeliveryStep, ExportStore
from edge.drift.part import DriftPart
from edge.findings import Finding, Outline
from edge.folders import DATABASE, AgentFolders
from edge.guarantee import NOT_CALIBRATED, Guarantee
from edge.link.estimate import LinkEstimate
from edge.part import Agent, Panel
from edge.report.compose import completed
from edge.report.evidence import OUTLINES, outlines_file
from edge.report.folder import take_folder
from edge.report.model import Rejection, Report, Status
from edge.report.pictures import draw_pictures
from edge.report.write import write_report
from edge.run import site_of
from edge.settings.core import EdgeSettings, PageSettings
from edge.status.login import Authenticator
from edge.status.pages import application
from edge.status.users import hash_of
from edge.status.volumes import Volumes
from edge.store.record import Step
from edge.store.studies import Change, StudyStore
from edge.trail.records import TrailRecord
from evaluation.world import settings_in
from imaging.preprocess import Preprocessed
from imaging.volume import Geometry, StudyHeader
from process.http import Listener, serving
from tests.edge.builders import SilentCloud, open_store, pipeline_of
from tests.edge.dicom_out.sites import pacs_at
from tests.edge.report.reports import FINDING, POSSIBLE, REPORT
from tests.edge.running_agent import Showing, agent_of
from tests.imaging.small_ct import SIZE, SmallCt

PASSWORD = "correct horse battery"
HASH = hash_of(PASSWORD)
PAGES = ("/", "/drift", f"/study/{0:032x}", f"/study/{0:032x}/view", f"/study/{0:032x}/volume",
         f"/study/{0:032x}/slice/axial/0", f"/study/{0:032x}/report/1",
         f"/study/{0:032x}/picture/overview.jpg", "/none", "/login%3Fx")  # fmt: skip
USERS = "".join(f"{name}:{role}:{HASH}\n" for name, role in (("anna", "operator"),
                                                                  ("bert", "reader")))  # fmt: skip
CERTIFICATES = {"ca": "ca.pem", "cert": "page.pem", "key": "page.key"}
CT = SmallCt(24)
MIDDLE = SIZE // 2
LINK = LinkEstimate(silent_s=1.0)


def centre_of(index_zyx: tuple[int, int, int]) -> tuple[float, float, float]:
    z, y, x = index_zyx
    return (2.0 * x - 30, 2.0 * y - 30, CT.spacing_mm * z - 30)


def found(at: tuple[int, int, int], **fields: Any) -> Finding:
    return replace(FINDING, centre_mm=centre_of(at), **fields)


@dataclass
class Site:
    """The folders of an agent that does not run."""

    root: Path

    def __post_init__(self) -> None:
        self.settings: EdgeSettings = settings_in(self.root)
        self.folders = AgentFolders.of(self.settings)
        self.folders.make()
        with self.store():
            pass

    def store(self) -> StudyStore:
        return open_store(self.folders.state / DATABASE)

    @contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """Another process that holds its database, and then writes."""
        with closing(sqlite3.connect(self.folders.state / DATABASE)) as other, other:
            other.execute("BEGIN IMMEDIATE")
            yield other

    def add(
        self,
        name: str,
        *,
        key: str = "",
        step: Step = Step.DONE,
        report: Report | None = REPORT,
        reason: Mapping[str, str] | None = None,
        images: bool = True,
    ) -> str:
        """A study with real images at this step; its key."""
        key = key or f"{len(list(self.folders.outbox.iterdir())):032x}"
        home = {Step.QUARANTINED: self.folders.quarantine / key / "study"}.get(
            step, (self.folders.done if step is Step.DONE else self.folders.work) / key
        )
        home.mkdir(parents=True)
        if images:
            CT.write(home / name)
        with self.store() as store:
            store.adopt(key, step, (name,), iter([name]), Change(reason or {}))
        assert take_folder(self.folders.outbox / name, key)
        if report is not None:
            given = completed(replace(report, study_key=key, series_uid="1.2.826.0.1.1"))
            self.write(given, name)
        return key

    def write(self, report: Report, name: str) -> None:
        """The report of a study, with pictures."""
        out = self.folders.outbox / name
        box = Preprocessed(np.full((48, 64, 80), 90, np.uint8), Geometry())
        pictures = (
            {} if report.rejection else draw_pictures(report.findings, report.possible, box, out)
        )
        numbered = (*report.numbered, *report.numbered_possible)
        write_report(report, pictures, out, {OUTLINES: outlines_file(numbered, BOX)})

    def trail(self) -> list[TrailRecord]:
        """The records of the audit trail, before an agent has written them to files."""
        with self.store() as store:
            lines = [one.line for one in store.trail._waiting()]
        return [TrailRecord.parse(line) for line in lines]

    def give_up(self, key: str, reason: str, version: int = 1) -> None:
        """Make a dead letter for ``pacs``, which takes no segmentations."""
        with open_store(self.folders.state / DATABASE, ["pacs"]) as store:
            exports = store.extension(ExportStore)
            exports.note_answers("pacs", {SegmentationStorage: reason})
            exports.adopt(key, (version,))
            for export in exports.of(key):
                exports.made(export)
            for one in exports.deliveries(DeliveryStep.SENDING):
                if one.study_key == key:
                    exports.ended(one, DeliveryStep.DEAD, reason)

    def with_target(self) -> EdgeSettings:
        return self.settings.model_copy(update={"targets": (pacs_at(104),)})

    def agent(
        self,
        *,
        panels: Sequence[Panel] = (),
        guarantee: Guarantee = NOT_CALIBRATED,
        links: Callable[[], Mapping[str, LinkEstimate]] = lambda: {"cloud:50051": LINK},
        **given: Any,
    ) -> Agent:
        """What its pages show: the queue, the link, drift, and these panels."""
        pipeline = pipeline_of(SilentCloud())
        provenance = replace(
            pipeline.provenance, edge_model="screening-int8 1 (none)", guarantee=guarantee
        )
        reading = replace(pipeline, provenance=provenance)
        agent = agent_of(self.settings, links=links, pipeline=lambda: reading, **given)
        agent.parts = [DriftPart(agent), Showing(agent, panels)]
        return agent

    def users(self, text: str) -> Path:
        """The file of users, with this content."""
        file = self.root / "users"
        file.write_text(text)
        file.chmod(0o600)
        return file

    def authenticator(
        self,
        users: str | None = f"operator:operator:{HASH}",
        *,
        clock: Callable[[], float] = time.monotonic,
        **page: Any,
    ) -> Authenticator:
        """Who may see the pages: the users of this file, and whom the settings name."""
        if users is not None:
            page["password_file"] = self.users(users)
        settings = self.settings.model_copy(update={"page": PageSettings(**page)})
        return Authenticator(site_of(settings), clock)

    def app(
        self, authenticator: Authenticator | None = None, *, secure: bool = False, **given: Any
    ) -> ASGIApp:
        """Its pages; with the password unless it is said who may see them."""
        who = authenticator or self.authenticator()
        volumes = given.pop("volumes", None) or Volumes(site_of(self.settings))
        return application(self.agent(**given), volumes, who, secure=secure)

    def open_app(self, **given: Any) -> ASGIApp:
        """Its pages, open to every user of this machine."""
        return self.app(self.authenticator(None), **given)


@dataclass
class Visit:
    """A user without a screen."""

    client: httpx.Client

    def get(self, path: str, **headers: str) -> Any:
        return self.client.get(path, headers=headers, follow_redirects=False)

    def post(self, path: str, fields: Mapping[str, str] | None = None, **headers: str) -> Any:
        """A form, as this server's own page sends it."""
        given = {"origin": str(self.client.base_url).rstrip("/"), **headers}
        return self.client.post(path, data=fields or {}, headers=given, follow_redirects=False)

    def token(self, path: str = "/") -> str:
        return str(self.client.get(path).text.split('name="token" value="')[1].split('"')[0])

    def log_in(self, password: str = PASSWORD, **fields: str) -> Any:
        given = {"token": self.token("/login"), "password": password, **fields}
        return self.post("/login", given)


@contextmanager
def visiting(app: ASGIApp) -> Iterator[Visit]:
    """The pages served over HTTP, and a user."""
    with (
        serving(app, Listener("127.0.0.1:0")) as bound,
        httpx.Client(base_url=bound.url, timeout=60.0) as client,
    ):
        yield Visit(client)


HEADER = StudyHeader(patient_id="P1", patient_name="Doe^Jane", age="060Y", study_date="20260301")
SEEN = replace(
    REPORT,
    header=HEADER,
    findings=(found((6, 20, 12), diameter_mm=12.0),),
    possible=(replace(POSSIBLE, centre_mm=centre_of((15, 10, 22))),),
)
"""A report of `CT` with a finding and a possible finding in its voxels."""
WHY = Rejection("IncompleteSeries", "slice 12 of 100 is missing", "000012.dcm")
REJECTED = replace(REPORT, findings=(), status=Status.REJECTED, rejection=WHY)
BOX = Geometry(origin_mm=(-30.0, -30.0, -30.0))
"""A lung box with the origin of `CT`, and voxels of 1 mm."""
OUTLINED = replace(
    SEEN,
    findings=(
        replace(SEEN.findings[0], outline=Outline(np.ones((7, 10, 10), bool), (12, 36, 20))),
    ),
)
"""The same; the outline covers the voxels 5 to 7, 18 to 22, 10 to 14 of `CT`."""


def logins(site: Site) -> list[dict[str, object]]:
    return [dict(record.fields) for record in site.trail() if record.event == Event.LOGIN]
