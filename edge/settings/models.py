"""The settings of the edge's models and their updates: the table ``[models]``."""

from pathlib import Path

from process.settings import Table


class ModelSettings(Table):
    """Which models may run, and whether new ones are fetched.

    Attributes:
        folder: folder with the models and their manifest; None: the package's.
        keys: files of public keys, one of which must have signed the manifest of the models;
            empty: no signature is required.
        fetch: whether the agent fetches the model that the cloud offers, once a day, and tries it
            in shadow. It is never promoted by itself.
    """

    folder: Path | None = None
    keys: tuple[Path, ...] = ()
    fetch: bool = False
