"""Packages that only the extra `train` installs, and the error if one is missing."""

import importlib

PACKAGES = {"torch", "tomli_w", "onnxscript", "matplotlib", "scipy", "sklearn"}


def require(package: str) -> None:
    """Import a package that is needed only after a long measurement.

    Raises:
        ModuleNotFoundError: it is not installed; `how_to_install` says what to do.
    """
    importlib.import_module(package)


def how_to_install(error: ModuleNotFoundError) -> str | None:
    """Return a line that names the package and the extra; None if the extra does not have it."""
    if (error.name or "").partition(".")[0] not in PACKAGES:
        return None
    return f"{error.name} is missing: needs the extra `train`: pip install 'overread[train]'"
