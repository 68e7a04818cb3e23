"""Signed models that a cloud offers, an edge that may take them, and a cloud that lies."""

import os
import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from edge.escalation.rois import ROI_SHAPE
from edge.folders import DATABASE, AgentFolders
from edge.models.agreement import MIN_STUDIES, Compared
from edge.models.store import SHIPPED, Choice, ModelStore, open_models
from edge.run import site_of
from edge.settings.core import EdgeSettings
from edge.site import Site
from edge.trail.records import TrailRecord, records_after
from evaluation.world import settings_in
from models.runtime.artifacts import WEIGHTS
from models.runtime.signatures import make_keys, sign
from protos import overread_pb2 as pb
from protos import overread_pb2_grpc
from tests.cloud.running import MeanReader, RunningCloud, run_cloud
from tests.edge.builders import changed, open_store

NAME, SMALL = "screening-int8", "screening-small-int8"
FILES = ("screening-int8.onnx", "screening-small-int8.onnx")
GOOD = Compared(2, 2, 0, 3, 3, 5, 0.1, 0.4, 1.0, 1.0)
ENOUGH = (GOOD,) * MIN_STUDIES


@dataclass(frozen=True)
class Signed:
    """A folder of models that are offered, one as it is shipped, and the key of their signer."""

    folder: Path
    shipped: Path
    key: Path
    private: Path


def refitted(manifest: str) -> str:
    """The manifest with another threshold of the shipped model: another version of it."""
    pattern = r"(\[screening-int8\.settings\.thresholds\].*?\nfinding = )([0-9.]+)"

    def moved(found: re.Match[str]) -> str:
        return f"{found[1]}{0.9999 * float(found[2]):.6f}"

    edited, count = re.subn(pattern, moved, manifest, flags=re.DOTALL)
    assert count == 1
    return edited


def signed(into: Path, edit: Callable[[str], str] = refitted) -> Signed:
    """The shipped models with an edited manifest and as they are, signed with a new key."""
    private, public = make_keys(into, "hospital")
    folders = {"offered": edit, "shipped": str}
    for name, change in folders.items():
        folder = into / name
        folder.mkdir(parents=True)
        for file in FILES:
            os.symlink(WEIGHTS / file, folder / file)
        (folder / "manifest.toml").write_text(change((WEIGHTS / "manifest.toml").read_text()))
        sign(folder, private)
    return Signed(into / "offered", into / "shipped", public, private)


@dataclass(frozen=True)
class Edge:
    """The folders of an agent that was started once."""

    root: Path
    settings: EdgeSettings

    def __post_init__(self) -> None:
        self.folders.make()
        with open_store(self.folders.state / DATABASE):
            pass

    @property
    def site(self) -> Site:
        return site_of(self.settings)

    @property
    def folders(self) -> AgentFolders:
        return AgentFolders.of(self.settings)

    @property
    def models(self) -> Path:
        return self.folders.state / "models"

    def at(self, cloud: str) -> Site:
        """The same edge with another cloud."""
        return site_of(changed(self.settings, cloud__address=cloud))

    def store(self) -> AbstractContextManager[ModelStore]:
        return open_models(self.site)

    @property
    def choice(self) -> Choice:
        with self.store() as store:
            return store.choice()

    def damage(self, version: str) -> None:
        """Change the file of the small model."""
        file = self.models / version / f"{SMALL}.onnx"
        file.write_bytes(file.read_bytes()[:-1] + b"x")

    def compared(self) -> list[Compared]:
        """What the model in shadow was compared in."""
        with self.store() as store:
            return store.compared(self.choice.shadow or "", self.choice.active)

    def add(self, *compared: Compared, active: str = SHIPPED) -> str:
        """Store comparisons of the model in shadow; its version."""
        version = self.choice.shadow
        assert version
        with self.store() as store:
            for number, one in enumerate(compared):
                store.add_compared(version, active, f"{number:032x}", one)
        return version

    def trail(self) -> list[TrailRecord]:
        """All records of models, those that wait in the database too."""
        with open_store(self.folders.state / DATABASE) as store:
            store.trail.flush()
        return [
            one for one in records_after(self.folders.trail, 0) if one.event.startswith("model ")
        ]


def edge(root: Path, cloud: str, key: Path | None, **settings: Any) -> Edge:
    """An edge with these settings."""
    keys = () if key is None else (key,)
    folder = key.parent / "shipped" if key is not None else None
    given = {"cloud__address": cloud, "models__keys": keys, "models__folder": folder, **settings}
    return Edge(root, settings_in(root, **given))


@contextmanager
def offering(
    one: Signed, name: str = NAME, roi_shape: tuple[int, int, int] = ROI_SHAPE, **settings: Any
) -> Iterator[RunningCloud]:
    """A real cloud that offers a model; its reader takes ROIs of that shape."""
    with run_cloud(
        MeanReader(roi_shape=roi_shape), offered_model=name, offered_folder=one.folder, **settings
    ) as cloud:
        yield cloud


@contextmanager
def sending(
    responses: Sequence[pb.GetModelResponse], then: grpc.StatusCode | None = None
) -> Iterator[str]:
    """The address of a gRPC server that sends given responses and ends with a given status."""

    class Liar(overread_pb2_grpc.OverreadServicer):
        def GetModel(  # noqa: N802 - named by the contract
            self,
            request: Any,  # noqa: ARG002 - not needed
            context: Any,
        ) -> Iterator[pb.GetModelResponse]:
            yield from responses
            if then is not None:
                context.abort(then, "the line broke")

    server = grpc.server(ThreadPoolExecutor(2))
    overread_pb2_grpc.add_OverreadServicer_to_server(Liar(), server)  # type: ignore[no-untyped-call]
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(None).wait()


def responses_of(cloud: RunningCloud) -> list[pb.GetModelResponse]:
    """All that a cloud sends of its model."""
    with cloud.stub() as stub:
        return list(stub.GetModel(pb.GetModelRequest(kind=pb.MODEL_KIND_SCREENING), timeout=60))
