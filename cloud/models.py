"""Sends a model for the edge to the sites, beside the verdicts and never in their way.

Each transfer has one chunk on its way at a time, a few are open at once, and they pause while
studies or inference requests are open. A transfer that breaks off continues where it ended.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import contextmanager

import structlog

from cloud.limits import Bounds
from cloud.settings import CloudSettings
from models.runtime.package import WEIGHTS, Offer, open_offer
from protos import overread_pb2 as pb
from protos.errors import DeadlinePassed, InvalidRequest, NothingOffered, Overloaded

CHUNK_BYTES = 64 * 1024
PAUSE_S = 0.02
"""Between two chunks while others wait for verdicts: at most 3 MB/s for each transfer."""
MAX_HELD = 64

_log = structlog.get_logger(__name__)


class ModelTransfers:
    """The offered model, None for none, and the transfers that are open."""

    def __init__(self, settings: CloudSettings, bounds: Bounds) -> None:
        """Open the model that the settings offer; this takes seconds.

        Raises:
            ModelError: it cannot be offered; the message says why.
        """
        self._most, self._longest_s = bounds.max_transfers, bounds.transfer_timeout_s
        self._offer: Offer | None = None
        self.open = 0
        if settings.offered_model:
            folder = settings.offered_folder or WEIGHTS
            offer = open_offer(settings.offered_model, folder.absolute(), settings.model_keys)
            size = len(offer.packed)
            _log.info("model offered", model=offer.name, version=offer.version, bytes=size)
            self._offer = offer

    async def responses(
        self, request: pb.GetModelRequest, site: str, is_busy: Callable[[], bool]
    ) -> AsyncGenerator[pb.GetModelResponse]:
        """Yield the offer, then what the caller lacks of the model.

        Raises:
            NothingOffered: no model of this kind is offered.
            Overloaded: too many transfers are open.
            InvalidRequest: the request is wrong.
            DeadlinePassed: the transfer took too long; another call continues it.
        """
        offer, kind = self._offer, request.kind
        if kind == pb.MODEL_KIND_UNSPECIFIED:
            raise InvalidRequest("the kind of model is missing", field="kind")
        if kind != pb.MODEL_KIND_SCREENING or offer is None:
            # of a later contract: there is only its number
            name = pb.ModelKind.Name(kind) if kind in pb.ModelKind.values() else f"{kind}"
            raise NothingOffered(
                f"no model of kind {name.removeprefix('MODEL_KIND_').lower()} is offered here;"
                " the operator of the cloud offers one with the setting offered_model"
            )
        if len(request.held) > MAX_HELD:
            many = f"{len(request.held)} files held, expected at most {MAX_HELD}"
            raise InvalidRequest(many, field="held", limit=MAX_HELD)
        with self._counted():
            if request.version == offer.version:
                same = pb.ModelOffer(version=offer.version, name=offer.name)
                yield pb.GetModelResponse(offer=same)
                return
            held = {one.sha256: one.bytes for one in request.held}
            loop, sent = asyncio.get_running_loop(), 0
            until_s = loop.time() + self._longest_s
            yield pb.GetModelResponse(offer=_encoded(offer))
            start = min(held.get(offer.sha256, 0), len(offer.packed))
            for at in range(start, len(offer.packed), CHUNK_BYTES):
                if loop.time() > until_s:
                    limit = f"{self._longest_s:g} s"
                    raise DeadlinePassed(f"the transfer took more than {limit}; continue it")
                data = offer.packed[at : at + CHUNK_BYTES]
                # gRPC takes the next one when this one may be sent
                yield pb.GetModelResponse(chunk=pb.ModelChunk(offset=at, data=data))
                sent += len(data)
                await asyncio.sleep(PAUSE_S if is_busy() else 0)
            _log.info("model sent", version=offer.version, site=site, bytes=sent)

    @contextmanager
    def _counted(self) -> Iterator[None]:
        if self.open >= self._most:
            busy = f"{self.open} models are being sent, the limit is {self._most}"
            raise Overloaded(busy, limit=self._most)
        self.open += 1
        try:
            yield
        finally:
            self.open -= 1


def _encoded(offer: Offer) -> pb.ModelOffer:
    return pb.ModelOffer(
        version=offer.version,
        name=offer.name,
        manifest=offer.manifest,
        signatures=offer.signatures,
        bytes=len(offer.packed),
        sha256=offer.sha256,
    )
