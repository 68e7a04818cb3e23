"""`overread-models`: list, sign and probe the models; in the checkout also train and export them.

``list``, ``keys``, ``sign`` and ``probe`` work without torch.
"""

import json
import sys
import textwrap
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, NoReturn

import rich
import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress
from rich.table import Column, Table

from imaging.errors import StudyError
from models.runtime import SIGNATURES
from models.runtime.artifacts import WEIGHTS, Artifact, every
from models.runtime.errors import ModelError
from models.runtime.signatures import identity, make_keys, read_public_key, sign
from process.command_line import Json, how_to_install, in_checkout, program
from process.text import Printable, printable

app = program("overread-models", "Train, export and list Overread's models.")

_Folder = Annotated[
    Path | None,
    typer.Option(
        "--models", metavar="DIR", help="Folder with manifest.toml; default: the package's."
    ),
]

TRAINING = ("train", "prune", "export", "distil", "qat", "int4", "fit")
"""The commands that make artifacts; only the checkout has them."""


@app.command("list")
def list_models(as_json: Json = False) -> None:
    """List the installed artifacts with version, size, figures, licence and attribution."""
    artifacts = every()
    if as_json:
        print(json.dumps({name: _entry(one) for name, one in artifacts.items()}, indent=2))
        return
    console = Console()
    table = Table(Column("artifact", no_wrap=True), Column("made as", no_wrap=True), "figures")
    installed = {name: one for name, one in artifacts.items() if one.path.exists()}
    for name, artifact in installed.items():
        figures = (f"{key} {_short(value)}" for key, value in artifact.metrics.items())
        cells = (f"{name}\n{artifact.version}", _made(artifact), "\n".join(figures))
        table.add_row(*map(escape, cells))
        table.add_section()
    console.print(table)
    if others := ", ".join(name for name in artifacts if name not in installed):
        console.print(f"Not installed, in the checkout only: {others}.")
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
    signer = identity(read_public_key(public))
    print(printable(f"private key  {private}: keep it offline, it has no password"))
    print(
        printable(
            f"public key   {public}: {signer}, for models.keys of an edge, model_keys of a cloud"
        )
    )


@app.command("sign")
def sign_manifest(
    key: Annotated[Path, typer.Option(metavar="FILE", help="Private key of the signer.")],
    folder: _Folder = None,
) -> None:
    """Sign the manifest, which holds the hashes of all artifacts, after checking those here."""
    folder = folder or WEIGHTS
    absent = [name for name, one in every(folder).items() if not one.path.exists()]
    for name, artifact in every(folder).items():
        if name not in absent:
            artifact.stored()
    signer = sign(folder, key)
    print(printable(f"{folder / SIGNATURES}: signed by {signer}"))
    if absent:
        print(printable(f"not here, so not checked: {', '.join(absent)}"))


@app.command("probe")
def probe(
    model: Annotated[
        list[str] | None,
        typer.Option(help="Artifact; may be repeated. Default: screening-int8 and hybrid-int8."),
    ] = None,
    folder: _Folder = None,
    as_json: Json = False,
) -> None:
    """Measure every way to run the networks here; edge and cloud take the fastest correct one."""
    from models.probe.matrix import run_probe
    from models.probe.table import shown

    with Progress(console=Console(stderr=True)) as bar:
        result = run_probe(model or (), folder or WEIGHTS, bar.track)
    print(json.dumps(result, indent=2)) if as_json else Console().print(Printable(*shown(result)))


def _entry(artifact: Artifact) -> dict[str, Any]:
    fields = ("version", "kind", "precision", "parent", "method", "sha256")
    return {
        **{name: getattr(artifact, name) for name in (*fields, "licence", "attribution")},
        "file": str(artifact.path),
        "installed": artifact.path.exists(),
        "settings": artifact.settings,
        "metrics": artifact.metrics,
    }


def _made(artifact: Artifact) -> str:
    size = f"{artifact.path.stat().st_size / 1e6:.2f} MB"
    source = f"\nfrom {artifact.parent}" if artifact.parent else ""
    method = f"\n{textwrap.fill(artifact.method, 30)}" if artifact.method else ""
    return f"{artifact.precision}, {size}{source}{method}"


def _short(value: object) -> str:
    if isinstance(value, Mapping):
        return f"{value['value']:.3f} ({value['low']:.2f}-{value['high']:.2f})"
    return f"{value:.3f}" if isinstance(value, float) else str(value)


if find_spec("models.training") is not None:
    from models.cli import app as training

    app.add_typer(training)


def main() -> None:
    """Run the command ``overread-models``; an error ends it with one line."""
    name = "".join(sys.argv[1:2])
    if name in TRAINING and find_spec("models.training") is None:
        _end(in_checkout(f"overread-models {name}", "train"))
    rich.reconfigure(stderr=True)  # progress goes to stderr, results to stdout
    try:
        app()
    except (ModelError, StudyError, OSError) as error:
        _end(f"{type(error).__name__}: {error}", error)
    except ModuleNotFoundError as error:
        if (line := how_to_install(error)) is None:
            raise
        _end(line, error)


def _end(line: str, cause: Exception | None = None) -> NoReturn:
    typer.echo(printable(line), err=True)
    raise SystemExit(1) from cause


if __name__ == "__main__":
    main()
