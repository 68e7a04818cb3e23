"""The command ``overread-cloud``: runs the second reader as a service. Not a medical device."""

import asyncio
import dataclasses
import json
import os
import sys
import threading
from contextlib import ExitStack
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, NoReturn

import grpc
import structlog
import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from cloud.describe import fetch_description
from cloud.errors import BadSettings, CloudError
from cloud.instances import Reader, hanging_steps, open_instances, open_reader
from cloud.server import CloudServer, server_credentials
from cloud.server import serve as serve_until_signalled
from cloud.settings import CloudSettings, load_settings
from cloud.telemetry import Telemetry
from models.runtime.errors import ModelError
from process.command_line import ignore_hangup, program
from process.endpoints import Pulse, notify_systemd, serving_metrics
from process.logs import configure_logging
from process.text import Printable, printable
from process.tls import TlsFiles, diagnose
from process.tracing import exporting
from protos.errors import OverreadError, Unreachable
from protos.messages import Description

app = program("overread-cloud", "The second reader of chest CT as a service. Not a medical device.")

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
        with exporting("overread-cloud", settings.traces):
            asyncio.run(_serve(settings, ready_file))
    except (CloudError, ModelError, OverreadError, OSError) as error:
        _leave_hanging_model(1)
        _fail(error)
    _leave_hanging_model(0)


@app.command()
def describe(
    address: Annotated[str, typer.Argument(help="HOST:PORT of a running service.")],
    timeout_s: Annotated[float, typer.Option(help="Seconds to wait for the answer.")] = 5.0,
    tls_ca: Annotated[
        Path | None, typer.Option(help="PEM authority of the service's certificate; enables TLS.")
    ] = None,
    tls_cert: Annotated[
        Path | None, typer.Option(help="PEM client certificate, for mutual TLS.")
    ] = None,
    tls_key: Annotated[Path | None, typer.Option(help="PEM private key of --tls-cert.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Output as JSON.")] = False,
) -> None:
    """Show the model and the limits of a running service."""
    if (tls_cert is None) != (tls_key is None):
        raise typer.BadParameter("--tls-cert and --tls-key must be given together")
    try:
        files = TlsFiles(ca=tls_ca, cert=tls_cert, key=tls_key).named("--tls-")
        description = dataclasses.asdict(_fetch(address, files, timeout_s))
    except (CloudError, OSError, OverreadError) as error:
        _fail(error)
    if as_json:
        print(json.dumps(description))
        return
    table = Table("property", "value")
    for name, value in description.items():
        if name == "models":
            value = ", ".join(f"{model} {number}" for model, number in value.items())
        elif name == "roi_shape":
            value = " x ".join(map(str, value))
        table.add_row(name, escape(str(value)))
    Console().print(Printable(table))


async def _serve(settings: CloudSettings, ready_file: Path | None) -> None:
    telemetry, pulse, closed = Telemetry(), Pulse(STALLED_S), ["the model is being loaded"]
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
        reader = opened.enter_context(open_instances(settings, partial(open_reader, settings)))
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


def _fetch(address: str, files: TlsFiles, timeout_s: float) -> Description:
    """Return what the service offers; where TLS fails, the error says why."""
    if problems := files.problems():
        raise BadSettings("; ".join(problems))
    credentials = None
    if files.ca is not None or files.cert is not None:
        credentials = grpc.ssl_channel_credentials(*files.current().contents)
    try:
        return fetch_description(address, credentials=credentials, timeout_s=timeout_s)
    except Unreachable:
        # with a certificate and no authority, those of the system count, which gRPC knows
        known = files.ca is not None or credentials is None
        if known and (reason := diagnose(address, files, timeout_s)):
            raise Unreachable(reason) from None
        raise


def _leave_hanging_model(status: int) -> None:
    """End the process at once where the model hangs: Python would wait for its thread."""
    if steps := hanging_steps():
        _log.error("the model hangs, the process ends without it", threads=steps)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status or 1)


def _fail(error: Exception) -> NoReturn:
    line = printable(f"{type(error).__name__}: {error}")
    Console(stderr=True).print(line, style="red", markup=False, highlight=False, soft_wrap=True)
    raise typer.Exit(1)


def main() -> None:
    """Run ``overread-cloud``."""
    app()


if __name__ == "__main__":
    main()
