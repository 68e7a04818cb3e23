"""The command ``overread-cloud describe``, and its client of `Describe` for scripts."""

import dataclasses
import json
from pathlib import Path
from typing import Annotated, cast

import grpc
import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from cloud.settings import BadSettings, CloudError
from process.command_line import stopped
from process.settings import MAX_S
from process.text import Printable
from process.tls import TlsFiles, diagnose, is_address
from protos import codec, overread_pb2_grpc
from protos import overread_pb2 as pb
from protos.errors import OverreadError, Unreachable, from_status
from protos.messages import Description

app = typer.Typer()


def fetch_description(
    address: str, *, credentials: grpc.ChannelCredentials | None = None, timeout_s: float = 5.0
) -> Description:
    """Return what the service at ``address`` offers; wait at most ``timeout_s`` seconds.

    Raises:
        OverreadError: the service is unreachable, or its answer does not follow the contract.
    """
    with (
        grpc.insecure_channel(address)
        if credentials is None
        else grpc.secure_channel(address, credentials)
    ) as channel:
        stub = overread_pb2_grpc.OverreadStub(channel)
        try:
            return codec.decode_description(stub.Describe(pb.DescribeRequest(), timeout=timeout_s))
        except grpc.RpcError as error:
            status = cast(grpc.Call, error)  # the error of a blocking call is its own status
            raise from_status(status.code(), status.details(), status.trailing_metadata()) from None


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
    if not (is_address(address) or address.startswith("unix:")):
        raise typer.BadParameter(f"the address {address!r}: expected HOST:PORT")
    if not 0 < timeout_s <= MAX_S:
        raise typer.BadParameter(
            f"--timeout-s {timeout_s:g}: expected seconds, above 0 and at most {MAX_S:g}"
        )
    try:
        files = TlsFiles(ca=tls_ca, cert=tls_cert, key=tls_key).named("--tls-")
        description = dataclasses.asdict(_fetch(address, files, timeout_s))
    except (CloudError, OSError, OverreadError) as error:
        raise stopped(error) from error
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
