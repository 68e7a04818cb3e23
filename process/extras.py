"""Packages that only an extra installs, and the error if one is missing."""

import importlib

PACKAGES = {
    **dict.fromkeys(("torch", "tomli_w", "onnxscript", "matplotlib", "scipy", "sklearn"), "train"),
    **dict.fromkeys(("hpack", "hyperframe"), "dev"),
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
    return f"{error.name} is missing: needs the extra `{extra}`: pip install 'overread[{extra}]'"
