"""Fetch the model that the cloud offers, and put it in shadow.

    offer -> signature and version -> model file -> trial -> in shadow

Each arrow ends in a durable step, and a fetch that broke off anywhere is continued by the next.
The channel is one of its own, so that no byte of a model lies before a verdict. A model is opened
for the first time in a process of its own (`edge.models.smoke_test`), at the lowest priority.
"""

import fcntl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import structlog

from edge.database import StepHook
from edge.folders import AgentFolders, other_user
from edge.link.channel import open_channel
from edge.models.errors import FetchFailed, RefusedModel, UpdatesOff
from edge.models.folder import ModelFolder, ModelFolders, is_there
from edge.models.smoke_test import try_model
from edge.models.store import ModelStep, ModelStore, StoredPackage, open_models
from edge.settings.core import EdgeSettings
from edge.site import Site
from models.runtime.errors import ModelError
from models.runtime.package import (
    MOST_MANIFEST,
    MOST_MODEL,
    WEIGHTS,
    Package,
    is_version,
    read_package,
)
from protos import overread_pb2 as pb
from protos.errors import OverreadError, from_status
from protos.messages import SITE_KEY
from protos.overread_pb2_grpc import OverreadStub

TRANSFER_S = 900.0
"""Longest time of one transfer; the next one continues it."""
MOST_HELD = 16
"""Pieces that a request names."""

log = structlog.get_logger()


@dataclass(frozen=True)
class Fetched:
    """The outcome of a fetch: the version that is offered, and whether it is new here."""

    version: str
    new: bool
    bytes: int = 0


def fetch(
    site: Site,
    *,
    user: str,
    again: bool = False,
    on_step: StepHook = lambda _step, _durable: None,
    on_chunk: Callable[[int], None] = lambda _bytes: None,
) -> Fetched:
    """Fetch what the cloud offers; nothing where it is here already.

    ``again`` puts a model in shadow again that was rolled back. ``on_chunk`` is called with the
    size of every chunk that came.

    Raises:
        UpdatesOff: the settings take no model from a cloud.
        FetchFailed: the cloud offers none, or the transfer broke off; fetching again continues it.
        RefusedModel: what came is damaged or unsigned, and was discarded.
        sqlite3.Error, OSError: nothing can be written.
    """
    settings = site.settings
    cloud = require_updates(site)
    models = ModelFolders.of(site.folders)
    with (
        open_models(site, on_step) as store,
        _alone(models.top),
        open_channel(cloud, settings, alone=True) as channel,
    ):
        transfer = _Transfer(settings, models, store, user, again, on_step, on_chunk)
        try:
            return transfer.run(OverreadStub(channel))
        except RefusedModel as error:
            transfer.discard(str(error))
            raise
        except grpc.RpcError as error:
            fault = _fault_of(error)
            raise FetchFailed(f"{fault.text}; what came is kept, fetch again") from error


def require_updates(site: Site) -> str:
    """Return the address of the cloud that models are taken from.

    Raises:
        UpdatesOff: none may be.
    """
    settings = site.settings
    if not settings.models.keys:
        raise UpdatesOff(
            "models.keys is not set: only a signed model is taken from a cloud; set models.keys to"
            " the public keys of who may sign models"
        )
    if settings.cloud.address is None:
        raise UpdatesOff("cloud is off: there is nobody to fetch a model from; set cloud")
    require_owner(site.folders)
    return settings.cloud.address


def require_owner(folders: AgentFolders) -> None:
    """Raise `UpdatesOff` if this is another user than the agent's, who could not read the files."""
    if note := other_user(folders):
        raise UpdatesOff(note)


class _Transfer:
    """One fetch: the request, what comes, and what is stored of it."""

    def __init__(
        self,
        settings: EdgeSettings,
        models: ModelFolders,
        store: ModelStore,
        user: str,
        again: bool,
        on_step: StepHook,
        on_chunk: Callable[[int], None],
    ) -> None:
        self._settings, self._models, self._store = settings, models, store
        self._user, self._again = user, again
        self._on_step, self._on_chunk = on_step, on_chunk
        self._version, self._offered, self._bytes = "", "", 0

    def run(self, stub: OverreadStub) -> Fetched:
        """Fetch; errors as `fetch`."""
        known = next((one for one in self._store.packages() if self._is_whole(one)), None)
        held = [pb.HeldPiece(sha256=s, bytes=n) for s, n in self._models.held()]
        shipped = _shipped_version(self._settings)
        version = known.version if known else shipped
        request = pb.GetModelRequest(
            kind=pb.MODEL_KIND_SCREENING, version=version, held=held[:MOST_HELD]
        )
        metadata = ((SITE_KEY, self._settings.site),) if self._settings.site else None
        call: Any = stub.GetModel(request, timeout=TRANSFER_S, metadata=metadata)
        try:
            return self._receive(call, known, shipped)
        finally:
            call.cancel()  # changes nothing of a call that has ended

    def discard(self, reason: str) -> None:
        """Remove what came, and record why; what is active or was before stays."""
        log.error("model refused", version=self._version, reason=reason)
        choice = self._store.choice()
        if self._version and self._version not in (choice.active, choice.previous):
            self._models.at(self._version).remove()
        self._store.refuse(self._version or self._offered, reason, self._user)

    def _receive(self, call: Any, known: StoredPackage | None, shipped: str) -> Fetched:
        responses = iter(call)
        first = next(responses, None)
        if first is None or not first.HasField("offer"):
            raise RefusedModel("the cloud sent no offer first")
        offer = first.offer
        if offer.version == shipped:
            return Fetched(shipped, False)
        if known is not None and offer.version == known.version:
            if known.rejected and self._again:
                self._store.shadow(known, user=self._user, again=True)
                return Fetched(known.version, True)
            return Fetched(known.version, False)
        folder, package = self._accept(offer)
        (piece,) = offer.pieces
        self._receive_piece(responses, piece, folder)
        self._use(piece, folder, package)
        self._clean_up()
        return Fetched(package.version, True, self._bytes)

    def _accept(self, offer: pb.ModelOffer) -> tuple[ModelFolder, Package]:
        """Check an offer, and make its folder."""
        self._offered = offer.version if is_version(offer.version) else ""
        if len(offer.manifest) > MOST_MANIFEST or len(offer.signatures) > MOST_MANIFEST:
            raise RefusedModel(f"a manifest of more than {MOST_MANIFEST} bytes")
        roles = [piece.role for piece in offer.pieces]
        if roles != [pb.PIECE_ROLE_XZ]:
            raise RefusedModel(
                f"the cloud sends pieces of roles {roles}, expected one model file in xz (role"
                f" {pb.PIECE_ROLE_XZ}): cloud and edge are of different versions, upgrade the older"
            )
        size = offer.pieces[0].bytes
        if not 0 < size <= MOST_MODEL or len(offer.pieces[0].sha256) != 32:
            raise RefusedModel(f"a model file of {size} bytes, expected at most {MOST_MODEL}")
        self._on_step(ModelStep.OFFERED, False)
        # only from here on is there something of this version to discard
        taken = self._models.take(
            offer.name, offer.version, offer.manifest, offer.signatures, self._settings.models.keys
        )
        self._version = offer.version
        self._on_step(ModelStep.OFFERED, True)
        return taken

    def _receive_piece(
        self, responses: Iterator[Any], piece: pb.ModelPiece, folder: ModelFolder
    ) -> None:
        """Receive the rest of the model file."""
        part = folder.part(piece.sha256)
        size = part.stat().st_size if part.exists() else 0
        while size < piece.bytes:
            response = next(responses, None)
            if response is None:
                raise FetchFailed("the transfer ended before the model was whole; fetch again")
            chunk = response.chunk
            if chunk.piece != 0 or size + len(chunk.data) > piece.bytes or not chunk.data:
                raise RefusedModel(
                    f"{len(chunk.data)} bytes of piece {chunk.piece} came, expected"
                    f" {piece.bytes - size} of piece 0"
                )
            folder.append(piece.sha256, chunk.offset, chunk.data)
            size += len(chunk.data)
            self._bytes += len(chunk.data)
            self._on_chunk(len(chunk.data))

    def _use(self, piece: pb.ModelPiece, folder: ModelFolder, package: Package) -> None:
        """Store the model file, which is whole; try it, and put it in shadow."""
        if not is_there(package):
            packed = folder.whole(piece.sha256)
            self._on_step(ModelStep.STORED, False)
            folder.put(package, packed)
            self._on_step(ModelStep.STORED, True)
        model, engine = package.model, try_model(package, self._settings)
        self._store.shadow(
            StoredPackage(package.version, model.name, engine),
            user=self._user,
            model=model.name,
            sha256=model.sha256,
            precision=model.precision,
            signed_by=package.signed_by,
            cloud=self._settings.cloud.address,
        )
        log.info("model fetched", version=package.version, model=model.name, engine=engine)
        folder.drop_parts()

    def _clean_up(self) -> None:
        """Remove the versions that nobody needs any more."""
        needed = self._store.choice().versions | {self._version}
        for one in self._models.remove_others(needed):
            self._store.forget(one)

    def _is_whole(self, package: StoredPackage) -> bool:
        """Tell whether a package is here, and sound."""
        try:
            folder = self._models.at(package.version)
            found = folder.package(package.name, self._settings.models.keys)
        except RefusedModel:
            return False
        return is_there(found)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Let one process fetch at a time."""
    folder.mkdir(mode=0o700, parents=False, exist_ok=True)
    with (folder / ".lock").open("wb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise FetchFailed("another fetch runs now; its result is in the list") from error
        yield


def _shipped_version(settings: EdgeSettings) -> str:
    """Return the version of the model of the settings; empty where it cannot be read."""
    try:
        folder = (settings.models.folder or WEIGHTS).absolute()
        return read_package(settings.screening_model, folder, settings.models.keys).version
    except ModelError:
        return ""


def _fault_of(error: Any) -> OverreadError:
    return from_status(error.code(), error.details(), error.trailing_metadata())
