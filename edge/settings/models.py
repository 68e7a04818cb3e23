"""The settings of the edge's models and their updates: the table ``[models]``."""

from pathlib import Path

from pydantic import Field

from process.settings import Table


class ModelSettings(Table):
    """Which models may run, and whether new ones are fetched.

    Attributes:
        folder: folder with the models and their manifest; None: the package's.
        keys: files of public keys, one of which must have signed the manifest of the models;
            empty: no signature is required.
        fetch: whether the agent fetches the model that the cloud offers, and tries it in shadow. It
            is never promoted by itself.
        fetch_hours: hours between two requests for a new model.
        shadow_studies: studies that a model must have read in shadow before it may be promoted.
        shadow_agreement: share of the findings of the active model that the new one must put
            forward too, as a finding or to the cloud, before it may be promoted.
    """

    folder: Path | None = None
    keys: tuple[Path, ...] = ()
    fetch: bool = False
    fetch_hours: float = Field(default=24.0, gt=0, le=8760)
    shadow_studies: int = Field(default=20, ge=1, le=500)
    shadow_agreement: float = Field(default=0.95, gt=0, le=1)
