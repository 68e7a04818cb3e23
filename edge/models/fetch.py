"""Fetch the model that the cloud offers, and put it in shadow.

    offer -> signature and version -> model file -> trial -> in shadow

Each arrow ends in a durable step, and a fetch that broke off anywhere is continued by the next.
A file appears under its name only when it is whole and has the hash of the signed manifest. What
has come of it so far is a hidden file named after the hash of what is sent. The channel is one of
its own, so that no byte of a model lies before a verdict.
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

from edge.atomic_files import move, remove, sync_folder, write_atomically
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
from process.files import named
from protos import overread_pb2 as pb
from protos.errors import from_status
from protos.messages import SITE_KEY
from protos.overread_pb2_grpc import OverreadStub

TRANSFER_S = 900.0
"""Longest time of one transfer; the next one continues it."""
MAX_HELD = 16
"""Files that a request names."""
FETCH_EVERY_S = 86_400.0
"""Time between two requests for a new model."""
FIRST_PAUSE_S = 60.0
"""Pause after the first fetch that failed; it doubles up to `FETCH_EVERY_S`."""
_PART = ".part"

log = structlog.get_logger()


class ModelStep(Enum):
    """A durable step of a fetch."""

    OFFERED = "offered"  # manifest and signatures are in its folder, checked
    STORED = "stored"  # the model is in its folder
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
        FetchFailed: the cloud offers none, or the transfer broke off; fetching again continues it.
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
            transfer.discard(str(error))
            raise
        except grpc.RpcError as error:
            status: Any = error
            fault = from_status(status.code(), status.details(), status.trailing_metadata())
            raise FetchFailed(f"{fault.text}; what came is kept, fetch again") from error


class _Transfer:
    """One fetch: the request, what comes, and what is stored of it."""

    def __init__(self, site: Site, store: ModelStore, user: str, on_step: StepHook) -> None:
        self._site, self._settings, self._keys = site, site.settings, site.settings.models.keys
        self._store, self._user, self._on_step = store, user, on_step
        self._version, self._offered, self._bytes = "", "", 0

    def run(self, stub: OverreadStub, again: bool) -> Fetched:
        """Fetch; errors as `fetch`."""
        known = next((one for one in self._store.packages() if self._is_here(one)), None)
        shipped = _shipped_version(self._settings)
        request = pb.GetModelRequest(
            kind=pb.MODEL_KIND_SCREENING,
            version=known.version if known else shipped,
            held=list(_held(top_of(self._site)))[:MAX_HELD],
        )
        metadata = ((SITE_KEY, self._settings.site),) if self._settings.site else None
        call: Any = stub.GetModel(request, timeout=TRANSFER_S, metadata=metadata)
        try:
            responses = iter(call)
            first = next(responses, None)
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
            folder = self._accept(offer)
            package = signed_package(offer.name, folder, self._keys)
            part = folder / f".{offer.sha256.hex()}{_PART}"
            with named(part):
                self._receive(responses, offer.bytes, part)
            self._use(package, part, offer.sha256)
            self._clean_up()
            return Fetched(package.version, True, self._bytes)
        finally:
            call.cancel()  # changes nothing of a call that has ended

    def discard(self, reason: str) -> None:
        """Remove what came, and record why; what is active or was before stays."""
        log.error("model refused", version=self._version, reason=reason)
        choice = self._store.choice()
        if self._version and self._version not in (choice.active, choice.previous):
            remove_version(folder_of(self._site, self._version))
        self._store.refuse(self._version or self._offered, reason, self._user)

    @contextmanager
    def _step(self, step: ModelStep) -> Iterator[None]:
        self._on_step(step, False)
        yield
        self._on_step(step, True)

    def _accept(self, offer: pb.ModelOffer) -> Path:
        """Check an offer, and store its manifest durably; return the folder of its version."""
        self._offered = offer.version if is_version(offer.version) else ""
        if len(offer.manifest) > MAX_MANIFEST or len(offer.signatures) > MAX_MANIFEST:
            raise RefusedModel(f"a manifest of more than {MAX_MANIFEST} bytes")
        if not 0 < offer.bytes <= MAX_MODEL or len(offer.sha256) != 32:
            size = f"{offer.bytes} bytes and a hash of {len(offer.sha256)}"
            raise RefusedModel(f"a model file of {size}, expected at most {MAX_MODEL} and 32")
        folder = folder_of(self._site, offer.version)
        with self._step(ModelStep.OFFERED):
            new = Path(tempfile.mkdtemp(prefix=NEW, dir=folder.parent))
            try:
                write_atomically(new / MANIFEST, offer.manifest)
                write_atomically(new / SIGNATURES, offer.signatures)
                found = signed_package(offer.name, new, self._keys).version
                if found != offer.version:
                    text = f"the manifest is of version {found}, offered was {offer.version}"
                    raise RefusedModel(text)
                if folder.is_symlink() or not folder.is_dir():
                    folder.unlink(missing_ok=True)  # whatever it is, it is no folder of ours
                    move(new, folder)
                else:  # what has come of its files stays; signatures may be others
                    for file in (SIGNATURES, MANIFEST):
                        move(new / file, folder / file)
            finally:
                shutil.rmtree(new, ignore_errors=True)
            # only from here on is there something of this version to discard
            self._version = offer.version
        return folder

    def _receive(self, responses: Iterator[Any], size: int, part: Path) -> None:
        with part.open("ab") as file:
            while (had := file.tell()) < size:
                response = next(responses, None)
                if response is None:
                    raise FetchFailed("the transfer ended before the model was whole; fetch again")
                chunk = response.chunk
                count = len(chunk.data)
                if chunk.offset != had or not 0 < count <= size - had:
                    came = f"{count} bytes from {chunk.offset} came"
                    raise RefusedModel(f"{came}, expected at most {size - had} from {had}")
                file.write(chunk.data)
                self._bytes += count

    def _use(self, package: Package, part: Path, digest: bytes) -> None:
        """Store the model file, which is whole; try it, and put it in shadow."""
        model = package.model
        if not is_whole(package):
            packed = part.read_bytes()
            if hashlib.sha256(packed).digest() != digest:
                remove(part)
                raise RefusedModel(f"{len(packed)} bytes have another hash than was offered")
            with self._step(ModelStep.STORED):
                try:
                    content = unpacked(packed)
                except ModelError as error:
                    raise RefusedModel(str(error)) from error
                if hashlib.sha256(content).hexdigest() != model.sha256:
                    raise RefusedModel("the model file has another hash than in the manifest")
                write_atomically(model.path, content)
        engine = try_model(package, self._settings)
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
        for old in model.path.parent.glob(f".*{_PART}"):
            remove(old)
        sync_folder(model.path.parent)

    def _clean_up(self) -> None:
        """Remove the versions that nobody needs any more."""
        needed = self._store.choice().versions | {self._version}
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
        thread.join(1.0)  # a transfer that is not over is continued at the next start


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Let one process fetch at a time."""
    folder.mkdir(mode=0o700, exist_ok=True)
    try:
        with exclusive(folder / ".lock"):
            yield
    except AlreadyRunning as error:
        raise FetchFailed("another fetch runs now; its result is in the list") from error


def _held(top: Path) -> Iterator[pb.HeldModel]:
    """Yield every file of which a part is here: the hash of the whole, and the bytes so far."""
    for part in top.glob(f"*/.*{_PART}"):
        digest = part.name[1 : -len(_PART)]
        if len(digest) == 64 and not set(digest) - set("0123456789abcdef"):
            yield pb.HeldModel(sha256=bytes.fromhex(digest), bytes=part.stat().st_size)


def _shipped_version(settings: EdgeSettings) -> str:
    """Return the version of the model of the settings; empty where it cannot be read."""
    try:
        folder = (settings.models.folder or WEIGHTS).absolute()
        return read_package(settings.screening_model, folder, settings.models.keys).version
    except ModelError:
        return ""
