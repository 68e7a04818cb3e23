"""`overread-models`: train, export, fit, list and sign the models.

Only ``list``, ``keys`` and ``sign`` work without torch.
"""

import json
import textwrap
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, NoReturn

import rich
import typer
from rich.console import Console
from rich.table import Column, Table

from models.calibration.risk_control import DELTA
from models.cli import (
    Data,
    Json,
    Kind,
    Method,
    distil,
    int4,
    prune,
    qat,
    ranges,
    sensitivity,
    train,
)
from models.runtime.artifacts import WEIGHTS, Artifact, every
from models.runtime.errors import ModelError
from models.runtime.signatures import SIGNATURES, make_keys, read_public_key, sign
from process.command_line import PlainGroup
from process.extras import how_to_install
from process.text import printable

app = typer.Typer(
    cls=PlainGroup,
    help="Train, export and list Overread's models.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(train, name="train")
app.add_typer(prune, name="prune")


def _print_version(given: bool) -> None:
    if given:
        print(f"overread-models {version('overread')}")
        raise typer.Exit


@app.callback()
def _root(
    _version: Annotated[
        bool, typer.Option("--version", help="Version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    pass


@app.command("list")
def list_models(as_json: Json = False) -> None:
    """List the artifacts with version, size, figures, licence and attribution."""
    artifacts = every()
    if as_json:
        print(json.dumps({name: _entry(one) for name, one in artifacts.items()}, indent=2))
        return
    console = Console()
    table = Table(Column("artifact", no_wrap=True), Column("made as", no_wrap=True), "figures")
    for name, artifact in artifacts.items():
        figures = (f"{key} {_short(value)}" for key, value in artifact.metrics.items())
        table.add_row(f"{name}\n{artifact.version}", _made(artifact), "\n".join(figures))
        table.add_section()
    console.print(table)
    for text in sorted({f"{a.licence}. {a.attribution}" for a in artifacts.values()}):
        console.print(text, style="dim")


@app.command("keys")
def keys(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder for both files.")],
    name: Annotated[
        str, typer.Option(metavar="NAME", help="Name of the signer: NAME.key and NAME.pem.")
    ] = "models",
) -> None:
    """Make a pair of keys to sign models with; the private one, NAME.key, stays with the signer."""
    private, public = make_keys(folder, name)
    signer = read_public_key(public)
    print(printable(f"private key  {private}: keep it offline, it has no password"))
    print(printable(f"public key   {public}: {signer.id}, for the setting model_keys"))


@app.command("sign")
def sign_manifest(
    key: Annotated[Path, typer.Option(metavar="FILE", help="Private key of the signer.")],
    folder: Annotated[
        Path | None,
        typer.Option(
            "--models", metavar="DIR", help="Folder with manifest.toml; default: the package's."
        ),
    ] = None,
) -> None:
    """Sign the manifest, which holds the hashes of all artifacts, after checking these."""
    folder = folder or WEIGHTS
    for artifact in every(folder).values():
        artifact.stored()
    signer = sign(folder, key)
    print(printable(f"{folder / SIGNATURES}: signed by {signer}"))


def _entry(artifact: Artifact) -> dict[str, Any]:
    fields = ("version", "kind", "precision", "parent", "method", "sha256")
    return {
        **{name: getattr(artifact, name) for name in (*fields, "licence", "attribution")},
        "file": str(artifact.path),
        "settings": artifact.settings,
        "metrics": artifact.metrics,
    }


def _made(artifact: Artifact) -> str:
    exists = artifact.path.exists()
    size = f"{artifact.path.stat().st_size / 1e6:.2f} MB" if exists else "missing"
    source = f"\nfrom {artifact.parent}" if artifact.parent else ""
    method = f"\n{textwrap.fill(artifact.method, 30)}" if artifact.method else ""
    return f"{artifact.precision}, {size}{source}{method}"


def _short(value: object) -> str:
    if isinstance(value, Mapping):
        return f"{value['value']:.3f} ({value['low']:.2f}-{value['high']:.2f})"
    return f"{value:.3f}" if isinstance(value, float) else str(value)


@app.command("export")
def export(
    kind: Kind,
    data: Data,
    weights: Annotated[
        list[Path], typer.Option(help="averaged.pt of a run; repeat to join members of a hybrid.")
    ],
    method: Method = "minmax",
    name: Annotated[
        str, typer.Option(metavar="NAME", help="NAME-fp32 and NAME-int8; it begins with KIND.")
    ] = "",
) -> None:
    """Export trained weights as FP32 and INT8 artifacts and enter both in the manifest."""
    from models.quantization.ptq import run_export

    if name and name.split("-")[0] != kind:
        raise typer.BadParameter(f"{name}: it must begin with {kind}")
    run_export(kind, data, weights, method, name or kind)


for command in (distil, qat, int4, ranges, sensitivity):
    app.command()(command)


@app.command("fit")
def fit(
    data: Data,
    screening: Annotated[str, typer.Option(help="Screening artifact.")] = "screening-int8",
    hybrid: Annotated[str, typer.Option(help="Hybrid artifact.")] = "hybrid-int8",
    delta: Annotated[
        float, typer.Option(min=1e-6, max=0.999999, help="Probability that more are missed.")
    ] = DELTA,
    keep_hybrid: Annotated[
        bool, typer.Option("--keep-hybrid", help="Leave the settings of --hybrid.")
    ] = False,
) -> None:
    """Fit probabilities and thresholds on whole scans; write them to the manifest.

    The guarantee on missed nodules is that of nodules of other patients in whole scans.
    """
    from models.calibration.guarantee import run_fit

    run_fit(data, screening, hybrid, delta=delta, keep_hybrid=keep_hybrid)


@app.command("split")
def split(
    name: Annotated[str, typer.Argument(help="Hybrid artifact.")],
    parts: Annotated[int, typer.Option(min=2, help="Number of parts, as the cloud's stages.")] = 3,
) -> None:
    """Cut an artifact into parts of about equal time that the cloud runs as a pipeline."""
    from models.export.parts import export_parts

    export_parts(name, parts)


def main() -> None:
    """Run the command ``overread-models``; an error ends it with one line."""
    rich.reconfigure(stderr=True)  # progress goes to stderr, results to stdout
    try:
        app()
    except (ModelError, OSError) as error:
        _end(f"{type(error).__name__}: {error}", error)
    except ModuleNotFoundError as error:
        if (line := how_to_install(error)) is None:
            raise
        _end(line, error)


def _end(line: str, cause: Exception) -> NoReturn:
    typer.echo(printable(line), err=True)
    raise SystemExit(1) from cause


if __name__ == "__main__":
    main()
