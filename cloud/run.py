"""The command ``overread-cloud serve``: the process of the service, from settings to its end."""

import asyncio
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import structlog
import typer

from cloud.instances import Instances, OpenOne, Reader, hanging_steps, open_instances, open_reader
from cloud.server import CloudServer, server_credentials
from cloud.server import serve as serve_until_signalled
from cloud.settings import BadSettings, CloudError, CloudSettings, load_settings
from cloud.telemetry import CloudTelemetry
from models.runtime.errors import ModelError
from process.command_line import ignore_hangup, stopped
from process.endpoints import Pulse, notify_systemd, serving_metrics
from process.logs import configure_logging
from protos.errors import OverreadError

app = typer.Typer()

STALLED_S = 30.0
"""After this time without progress, the event loop counts as stalled: the process must restart."""

UNREADY_S = 5.0
"""After this time without progress, no new study should come."""

_log = structlog.get_logger(__name__)


@app.command()
def serve(
    config: Annotated[Path | None, typer.Option(help="TOML file with settings.")] = None,
    address: Annotated[
        str | None, typer.Option(help="HOST:PORT to listen on; port 0: a free one.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="Artifact that reads ROIs.")] = None,
    engine: Annotated[str | None, typer.Option(help="Inference engine, or auto.")] = None,
    threads: Annotated[
        int | None, typer.Option(help="Threads of each instance; 0: all cores, divided.")
    ] = None,
    grace_s: Annotated[
        float | None, typer.Option(help="Seconds for open studies to finish after SIGTERM.")
    ] = None,
    metrics_address: Annotated[
        str | None, typer.Option(help="HOST:PORT of Prometheus metrics.")
    ] = None,
    http_address: Annotated[
        str | None, typer.Option(help="HOST:PORT of the Open Inference Protocol over HTTP.")
    ] = None,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Serve other machines without TLS.")
    ] = False,
    ready_file: Annotated[
        Path | None, typer.Option(help="File for the bound address, there while serving.")
    ] = None,
) -> None:
    """Serve until SIGTERM, then finish open studies; a second signal stops at once."""
    try:
        settings = load_settings(
            config,
            address=address,
            model=model,
            engine=engine,
            threads=threads,
            grace_s=grace_s,
            metrics_address=metrics_address,
            http_address=http_address,
            insecure=insecure or None,
        )
        configure_logging(settings.log_format, sys.stderr)
        ignore_hangup()
        with ExitStack() as held:
            if settings.traces:  # by an extra
                from process.otel import exporting

                held.enter_context(exporting("overread-cloud", settings.traces))
            asyncio.run(_serve(settings, ready_file))
    except (CloudError, ModelError, OverreadError, OSError) as error:
        _leave_hanging_model(1)
        raise stopped(error) from error
    _leave_hanging_model(0)


@contextmanager
def opened_reader(settings: CloudSettings, open_one: OpenOne) -> Iterator[Reader]:
    """Open the instances of the model in this process, or on the machines of Ray, while entered.

    With ``ray``, ``open_one`` is called in other processes, so it must be picklable.

    Raises:
        BadSettings: Ray cannot be used.
        ModelError: whatever ``open_one`` raises.
    """
    if not settings.ray:
        yield open_instances(settings, open_one)
        return
    try:
        from cloud.ray_actors import opened_actors
    except ModuleNotFoundError as error:
        missing = f"ray is set, and {error.name} is missing: pip install 'overread[ray]'"
        raise BadSettings(missing) from error
    with opened_actors(settings, open_one) as actors:
        yield Instances(actors)


async def _serve(settings: CloudSettings, ready_file: Path | None) -> None:
    telemetry, pulse, closed = CloudTelemetry(), Pulse(STALLED_S), ["the model is being loaded"]
    loading = threading.Event()
    loading.set()
    server_credentials(settings)  # fails before the model is loaded
    for warning in settings.tls.warnings():
        _log.warning("a certificate expires soon", reason=warning)
    telemetry.observe_expiries(settings.tls)
    if settings.tls.cert is None and settings.reachable:
        _log.warning("ROIs are received unencrypted: set tls.cert and tls.key")
    # the loop stands still while the model is loaded
    alive = {"event loop": lambda: "" if loading.is_set() else pulse.problem()}
    usable = {"service": lambda: "".join(closed) or pulse.problem(UNREADY_S)}
    with ExitStack() as opened:
        served = serving_metrics(telemetry.registry, settings.metrics_address, alive, usable)
        metrics = opened.enter_context(served)
        if metrics is not None:
            _log.info("metrics served", address=metrics)
        reader = opened.enter_context(opened_reader(settings, partial(open_reader, settings)))
        pulse.beat()
        beating = asyncio.create_task(_beat(pulse))
        loading.clear()

        def ready(bound: str) -> None:
            closed.clear()
            notify_systemd("READY=1")
            others = {"inference": server.inference_address, "http": server.http_address}
            others = {name: address for name, address in others.items() if address}
            _log.info("serving", address=bound, **others, **_description(settings, reader))
            if ready_file is not None:
                part = ready_file.with_name(ready_file.name + ".part")
                part.write_text(bound)
                part.replace(ready_file)  # atomic: no reader sees half of it

        server = CloudServer(settings, reader, telemetry, service_version=version("overread"))
        try:
            stopping = partial(closed.append, "the service is being stopped")
            await serve_until_signalled(server, ready=ready, draining=stopping)
        finally:
            beating.cancel()
            if ready_file is not None:
                ready_file.unlink(missing_ok=True)


async def _beat(pulse: Pulse) -> None:
    while True:
        pulse.beat()
        await asyncio.sleep(1.0)


def _description(settings: CloudSettings, reader: Reader) -> dict[str, object]:
    """Return, for the log, what is served, and how."""
    return {
        "encryption": settings.tls.encryption,
        "model": f"{reader.name} {reader.version} ({reader.engine})",
        "signature": "checked" if settings.model_keys else "not required",
        "version": version("overread"),
        "settings": str(settings.file or "no file"),
    }


def _leave_hanging_model(status: int) -> None:
    """End the process at once where the model hangs: Python would wait for its thread."""
    if steps := hanging_steps():
        _log.error("the model hangs, the process ends without it", threads=steps)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status or 1)
