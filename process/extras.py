"""What is not installed everywhere: packages of an extra, and commands of the checkout."""

import importlib
import sys
from importlib.util import find_spec

PACKAGES = {
    **dict.fromkeys(("torch", "tomli_w", "onnxscript", "matplotlib", "scipy"), "train"),
    "ray": "ray",
}
"""Packages, and the extra that installs them."""


def require(package: str) -> None:
    """Import a package that is needed only after a long measurement.

    Raises:
        ModuleNotFoundError: it is not installed; `how_to_install` says what to do.
    """
    importlib.import_module(package)


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


def overread_eval() -> None:
    """Run the command ``overread-eval``, or say where it is."""
    if find_spec("evaluation") is None:
        sys.exit(in_checkout("overread-eval", "evaluation"))
    try:
        main = importlib.import_module("evaluation.__main__").main
    except ModuleNotFoundError as error:
        if (line := how_to_install(error)) is None:
            raise
        sys.exit(line)
    main()
