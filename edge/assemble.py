"""Assembles the pipeline from the settings: the one place where the edge's parts are opened.

The channel to the cloud: plain, TLS or mutual TLS, as it is set.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import grpc
import structlog

from edge.budget import Budget
from edge.decide import decide
from edge.errors import BadSettings
from edge.escalation.client import Asking, Escalator, Knock, NoSecondReader, SecondReader
from edge.guarantee import for_roi_side
from edge.link.health import Watch
from edge.link.link import Link
from edge.pipeline import Pipeline
from edge.replay import decide_and_log
from edge.report.model import Provenance
from edge.report.pictures import draw_pictures
from edge.report.write import write_report
from edge.screen import EdgeReader, Screening
from edge.selection import SELECTION_POLICY
from edge.settings import EdgeSettings
from imaging.preprocess import preprocess
from imaging.read import read_study
from models.runtime.screener import open_screener
from protos.deadline import Clock, Deadline
from protos.messages import Priority

# A service that comes back is found again within a second, not within gRPC's two minutes.
OPTIONS = (
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.min_reconnect_backoff_ms", 3000),  # despite its name: how long connecting may take
    # a connection that swallows everything is found out and made anew
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 3000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.max_receive_message_length", 1 << 20),
    ("grpc.enable_retries", 0),  # `edge.escalation.client` retries, within the study's budget
)


def open_channel(address: str, settings: EdgeSettings) -> grpc.Channel:
    """A channel to ``HOST:PORT``; nothing is connected before the first study needs it.

    Raises:
        BadSettings: a certificate or key file cannot be read.
    """
    if settings.tls_ca is None:
        return grpc.insecure_channel(address, options=OPTIONS)
    credentials = grpc.ssl_channel_credentials(
        root_certificates=_content(settings.tls_ca),
        private_key=_content(settings.tls_key),
        certificate_chain=_content(settings.tls_certificate),
    )
    return grpc.secure_channel(address, credentials, options=OPTIONS)


def _content(file: Path | None) -> bytes | None:
    try:
        return None if file is None else file.read_bytes()
    except OSError as error:
        raise BadSettings(f"{file}: {error.strerror}") from error


log = structlog.get_logger()


@contextmanager
def open_pipeline(
    settings: EdgeSettings,
    *,
    watch: Callable[[str], None] | None = None,
    clock: Clock = time.monotonic,
) -> Iterator[Pipeline]:
    """The pipeline, with the model loaded and the channel to the cloud kept for all studies.

    Args:
        settings: of this process.
        watch: is told the name of each stage as it begins.
        clock: that deadlines and the ledger are measured with.

    Raises:
        BadSettings: a certificate cannot be read.
        UnfitModel: the model's manifest lacks its thresholds.
    """
    screener = open_screener(
        settings.screening_model, engine=settings.engine, threads=settings.threads
    )
    with ExitStack() as parts:
        second_reader = _open_second_reader(settings, parts, clock)
        pipeline = build_pipeline(settings, screener, second_reader, watch=watch, clock=clock)
        for_machines = settings.log_format == "json"
        yield replace(pipeline, decide=decide_and_log) if for_machines else pipeline


def build_pipeline(
    settings: EdgeSettings,
    screener: Screening,
    second_reader: SecondReader,
    *,
    watch: Callable[[str], None] | None = None,
    clock: Clock = time.monotonic,
) -> Pipeline:
    """The pipeline around a screening network and a second reader that are open already."""
    reader = EdgeReader.of(screener)
    return Pipeline(
        start_budget=lambda: Budget(Deadline.after(settings.deadline_s, clock), watch),
        read=read_study,
        preprocess=preprocess,
        reader=reader,
        decide=lambda situation, _study_key: decide(situation),
        second_reader=second_reader,
        draw=draw_pictures,
        persist_pending=lambda *_: None,  # only the daemon amends a report later
        write=write_report,
        provenance=Provenance(
            reader.label,
            for_roi_side(reader.guarantee, settings.roi_side),
            settings.deadline_s,
            lambda: datetime.now(UTC),
        ),
        reserve_s=settings.reserve_s,
        roi_bytes=settings.roi_side**3,
        max_rois=settings.max_rois,
        audit_rate=settings.audit_rate,
        policy=replace(SELECTION_POLICY, characterize=settings.describe),
    )


def _open_second_reader(settings: EdgeSettings, parts: ExitStack, clock: Clock) -> SecondReader:
    if settings.cloud is None:
        if settings.cloud_hedge is not None:
            log.warning("cloud_hedge is never asked: cloud is not set")
        return NoSecondReader()
    side = settings.roi_side
    asking = Asking(
        shape=(side, side, side),
        reserve_s=settings.reserve_s,
        attempts=settings.attempts,
        model_version=settings.cloud_model,
        priority=Priority(settings.priority),
        site=settings.site,
    )
    channel, link = _open_way(settings.cloud, settings, parts, clock)
    hedge = None
    if settings.cloud_hedge is not None:
        hedge = _open_way(settings.cloud_hedge, settings, parts, clock)
    return Escalator(channel, link, asking, hedge=hedge)


def _open_way(
    address: str, settings: EdgeSettings, parts: ExitStack, clock: Clock
) -> tuple[grpc.Channel, Link]:
    """The channel to one cloud and its link, watched from now on."""
    channel, link = parts.enter_context(open_channel(address, settings)), Link(clock=clock)
    if settings.watch_s:
        knock, pause_s, first_s = partial(Knock, channel), settings.watch_s, settings.connect_s
        parts.enter_context(Watch(knock, link, pause_s, first_s=first_s, clock=clock))
    return channel, link
