"""What the programs share: ``--version``, commands, errors, extras, and what SIGHUP does."""

import gc
import signal
import sys
import threading
from collections.abc import Iterator, Mapping
from importlib import import_module
from importlib.metadata import version
from typing import Annotated, Any, ClassVar

import typer
from rich.console import Console
from typer.core import TyperGroup

from process.text import printable

PACKAGES = {
    **dict.fromkeys(("torch", "tomli_w", "onnxscript", "matplotlib", "scipy"), "train"),
    "ray": "ray",
}
"""Packages, and the extra that installs them."""


class Loaded(Mapping[str, Any]):
    """Commands by name, each loaded from the ``app`` of its module when it is needed.

    A module whose app has no command of that name is a group of commands itself.
    """

    def __init__(self, modules: Mapping[str, str]) -> None:
        self._modules = modules

    def __getitem__(self, name: str) -> Any:
        module = self._modules[name]
        if module not in sys.modules:
            gc.disable()  # nothing of it is garbage: to look for it takes a quarter of the time
            try:
                import_module(module)
            finally:
                gc.freeze()
                gc.enable()
        group = typer.main.get_group(sys.modules[module].app)
        return group.commands.get(name, group)

    def __iter__(self) -> Iterator[str]:
        return iter(self._modules)

    def __len__(self) -> int:
        return len(self._modules)


class PlainGroup(TyperGroup):
    """A program with several commands.

    With ``modules``, a command is loaded from its own when it is called, or its help is shown: no
    other waits for its libraries.
    """

    modules: ClassVar[Mapping[str, str]] = {}

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        if self.modules:
            self.commands: Any = Loaded(self.modules)


def ignore_hangup() -> None:
    """Let SIGHUP do nothing: files of TLS are read again without it, and settings at a start."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGHUP, signal.SIG_IGN)


Json = Annotated[bool, typer.Option("--json", help="JSON output.")]
"""The option of commands that can print JSON."""


def program(
    name: str,
    help: str,  # noqa: A002 - typer's
    *,
    group: type[PlainGroup] = PlainGroup,
    completion: bool = True,
) -> typer.Typer:
    """Return a program of several commands that knows ``-h`` and ``--version``."""
    app = typer.Typer(
        cls=group,
        help=help,
        no_args_is_help=True,
        add_completion=completion,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )

    def print_version(given: bool) -> None:
        if given:
            typer.echo(f"{name} {version('overread')}")
            raise typer.Exit

    shown = typer.Option("--version", help="Version.", callback=print_version, is_eager=True)

    @app.callback()
    def root(_version: Annotated[bool, shown] = False) -> None:
        pass

    return app


def stopped(error: Exception) -> typer.Exit:
    """Print what went wrong in a line; return the exit of a program that failed."""
    line = printable(f"{type(error).__name__}: {error}")
    Console(stderr=True).print(line, style="red", markup=False, highlight=False, soft_wrap=True)
    return typer.Exit(1)


def how_to_install(error: ModuleNotFoundError) -> str | None:
    """Return a line that names the package and its extra; None if no extra has it."""
    extra = PACKAGES.get((error.name or "").partition(".")[0])
    if extra is None:
        return None
    return f"{error.name} is missing: in the checkout, pip install --editable '.[{extra}]'"


def in_checkout(command: str, extra: str) -> str:
    """Return the line for a command that is not installed, because only the checkout has it."""
    return (
        f"{command} is not installed: it is in the checkout only. Clone the repository, and there:"
        f" pip install --editable '.[{extra}]'"
    )
