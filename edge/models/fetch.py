"""Fetch the model that the cloud offers, and put it in shadow.

    offer -> signature and version -> model file -> trial -> stored -> in shadow

A version appears under its name only when it is whole, has the hash of the signed manifest and was
tried. A fetch that broke off before leaves nothing: a model has about 1 MB, and comes again. The
channel is one of its own, so that no byte of a model lies before a verdict.
"""

import hashlib
import shutil
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import grpc
import structlog

from edge.atomic_files import move, remove, write_atomically
from edge.database import StepHook
from edge.folders import AlreadyRunning, exclusive
from edge.link.channel import open_channel
from edge.models.folder import (
    NEW,
    FetchFailed,
    RefusedModel,
    UpdatesOff,
    folder_of,
    is_whole,
    remove_version,
    signed_package,
    top_of,
    try_model,
)
from edge.models.store import AGENT, ModelStore, StoredPackage, open_models, require_owner
from edge.settings.core import EdgeSettings
from edge.site import Site
from models.runtime import MANIFEST, SIGNATURES
from models.runtime.errors import ModelError
from models.runtime.package import (
    MAX_MANIFEST,
    MAX_MODEL,
    WEIGHTS,
    Package,
    is_version,
    read_package,
    unpacked,
)
from process.backoff import doubled
from protos import overread_pb2 as pb
from protos.errors import from_status
from protos.messages import SITE_KEY
from protos.overread_pb2_grpc import OverreadStub

TRANSFER_S = 900.0
"""Longest time of one transfer."""
FETCH_EVERY_S = 86_400.0
"""Time between two requests for a new model."""
FIRST_PAUSE_S = 60.0
"""Pause after the first fetch that failed; it doubles up to `FETCH_EVERY_S`."""

log = structlog.get_logger()


class ModelStep(Enum):
    """A durable step of a fetch."""

    STORED = "stored"  # its folder is there, whole and tried
    SHADOW = "shadow"  # it is tried in shadow, and may be promoted


@dataclass(frozen=True)
class Fetched:
    """The outcome of a fetch: the version that is offered, and whether it is new here."""

    version: str
    new: bool
    bytes: int = 0


def fetch(
    site: Site, *, user: str, again: bool = False, on_step: StepHook = lambda _step, _durable: None
) -> Fetched:
    """Fetch what the cloud offers; nothing where it is here already.

    ``again`` puts a model in shadow again that was rolled back.

    Raises:
        UpdatesOff: the settings take no model from a cloud.
        FetchFailed: the cloud offers none, or the transfer broke off.
        RefusedModel: what came is damaged or unsigned, and was discarded.
        sqlite3.Error, OSError: nothing can be written.
    """
    settings = site.settings
    if not settings.models.keys:
        raise UpdatesOff(
            "models.keys is not set: only a signed model is taken from a cloud; set models.keys to"
            " the public keys of who may sign models"
        )
    if settings.cloud.address is None:
        raise UpdatesOff("cloud is off: there is nobody to fetch a model from; set cloud")
    require_owner(site)
    with (
        open_models(site) as store,
        _alone(top_of(site)),
        open_channel(settings.cloud.address, settings, alone=True) as channel,
    ):
        transfer = _Transfer(site, store, user, on_step)
        try:
            return transfer.run(OverreadStub(channel), again)
        except RefusedModel as error:
            transfer.refuse(str(error))
            raise
        except grpc.RpcError as error:
            status: Any = error
            fault = from_status(status.code(), status.details(), status.trailing_metadata())
            raise FetchFailed(f"{fault.text}; fetch again") from error


class _Transfer:
    """One fetch: the request, what comes, and what is stored of it."""

    def __init__(self, site: Site, store: ModelStore, user: str, on_step: StepHook) -> None:
        self._site, self._settings, self._keys = site, site.settings, site.settings.models.keys
        self._store, self._user, self._on_step = store, user, on_step
        self._offered = ""

    def run(self, stub: OverreadStub, again: bool) -> Fetched:
        """Fetch; errors as `fetch`."""
        known = next((one for one in self._store.packages() if self._is_here(one)), None)
        shipped = _shipped_version(self._settings)
        request = pb.GetModelRequest(
            kind=pb.MODEL_KIND_SCREENING, version=known.version if known else shipped
        )
        metadata = ((SITE_KEY, self._settings.site),) if self._settings.site else None
        call: Any = stub.GetModel(request, timeout=TRANSFER_S, metadata=metadata)
        try:
            first = next(call, None)
            if first is None or not first.HasField("offer"):
                raise RefusedModel("the cloud sent no offer first")
            offer = first.offer
            if offer.version == shipped:
                return Fetched(shipped, False)
            if known is not None and offer.version == known.version:
                is_new = known.rejected and again
                if is_new:
                    with self._step(ModelStep.SHADOW):
                        self._store.shadow(known, user=self._user, again=True)
                return Fetched(known.version, is_new)
            new = Path(tempfile.mkdtemp(prefix=NEW, dir=top_of(self._site)))
            try:
                package = self._accept(offer, new)
                self._receive(call, offer.bytes, package)
                self._use(package, new)
            finally:
                shutil.rmtree(new, ignore_errors=True)
            self._clean_up(package.version)
            return Fetched(package.version, True, offer.bytes)
        finally:
            call.cancel()  # changes nothing of a call that has ended

    def refuse(self, reason: str) -> None:
        """Record why what came was not stored; what is active or was before stays."""
        log.error("model refused", version=self._offered, reason=reason)
        self._store.refuse(self._offered, reason, self._user)

    @contextmanager
    def _step(self, step: ModelStep) -> Iterator[None]:
        self._on_step(step, False)
        yield
        self._on_step(step, True)

    def _accept(self, offer: pb.ModelOffer, new: Path) -> Package:
        """Check an offer, and write its manifest into the folder ``new``; return the package."""
        self._offered = offer.version if is_version(offer.version) else ""
        if len(offer.manifest) > MAX_MANIFEST or len(offer.signatures) > MAX_MANIFEST:
            raise RefusedModel(f"a manifest of more than {MAX_MANIFEST} bytes")
        if not 0 < offer.bytes <= MAX_MODEL:
            raise RefusedModel(f"a model file of {offer.bytes} bytes, expected at most {MAX_MODEL}")
        write_atomically(new / MANIFEST, offer.manifest)
        write_atomically(new / SIGNATURES, offer.signatures)
        package = signed_package(offer.name, new, self._keys)
        if package.version != offer.version:
            text = f"the manifest is of version {package.version}, offered was {offer.version}"
            raise RefusedModel(text)
        return package

    def _receive(self, responses: Iterator[Any], size: int, package: Package) -> None:
        """Write the model file of ``size`` bytes in xz, once it is that of the manifest."""
        packed = bytearray()
        while len(packed) < size:
            if (response := next(responses, None)) is None:
                raise FetchFailed("the transfer ended before the model was whole; fetch again")
            if not 0 < len(response.chunk) <= size - len(packed):
                came = f"{len(response.chunk)} bytes came after {len(packed)}"
                raise RefusedModel(f"{came}, expected at most {size - len(packed)}")
            packed += response.chunk
        try:
            content = unpacked(bytes(packed))
        except ModelError as error:
            raise RefusedModel(str(error)) from error
        if hashlib.sha256(content).hexdigest() != package.model.sha256:
            raise RefusedModel("the model file has another hash than in the manifest")
        write_atomically(package.model.path, content)

    def _use(self, package: Package, new: Path) -> None:
        """Try the model in the folder ``new``, store it under its version, and put it in shadow."""
        model, engine = package.model, try_model(package, self._settings)
        folder = folder_of(self._site, package.version)
        with self._step(ModelStep.STORED):
            if folder.is_symlink() or not folder.is_dir():
                folder.unlink(missing_ok=True)  # whatever it is, it is no folder of ours
            remove_version(folder)
            move(new, folder)
        with self._step(ModelStep.SHADOW):
            self._store.shadow(
                StoredPackage(package.version, model.name, engine),
                user=self._user,
                model=model.name,
                sha256=model.sha256,
                precision=model.precision,
                signed_by=model.signed_by,
                cloud=self._settings.cloud.address,
            )
        log.info("model fetched", version=package.version, model=model.name, engine=engine)

    def _clean_up(self, version: str) -> None:
        """Remove the versions that nobody needs any more."""
        needed = self._store.choice().versions | {version}
        for folder in top_of(self._site).iterdir():
            if folder.is_dir() and folder.name not in needed:
                remove(folder)
                self._store.forget(folder.name)

    def _is_here(self, known: StoredPackage) -> bool:
        """Tell whether a package is here, and sound."""
        try:
            folder = folder_of(self._site, known.version)
            return is_whole(signed_package(known.name, folder, self._keys))
        except RefusedModel:
            return False


@contextmanager
def fetching(site: Site) -> Iterator[None]:
    """Fetch what the cloud offers, in a thread, while entered and if the settings say so."""
    if not site.settings.models.fetch:
        yield
        return
    stop = threading.Event()

    def fetch_on() -> None:
        failures = 0
        while True:
            try:
                found = fetch(site, user=AGENT)
                log.info("model looked for", version=found.version, new=found.new)
                wait_s, failures = FETCH_EVERY_S, 0
            except Exception as error:  # the agent goes on, and it is tried again
                log.warning("model not fetched", reason=f"{type(error).__name__}: {error}")
                failures += 1
                wait_s = doubled(FIRST_PAUSE_S, FETCH_EVERY_S, failures - 1)
            if stop.wait(wait_s):
                return

    thread = threading.Thread(target=fetch_on, name="models", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(1.0)  # a transfer that is not over begins again at the next start


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Let one process fetch at a time."""
    folder.mkdir(mode=0o700, exist_ok=True)
    try:
        with exclusive(folder / ".lock"):
            yield
    except AlreadyRunning as error:
        raise FetchFailed("another fetch runs now; its result is in the list") from error


def _shipped_version(settings: EdgeSettings) -> str:
    """Return the version of the model of the settings; empty where it cannot be read."""
    try:
        folder = (settings.models.folder or WEIGHTS).absolute()
        return read_package(settings.screening_model, folder, settings.models.keys).version
    except ModelError:
        return ""
