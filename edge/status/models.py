"""What the status page shows of the models, and what a person can do with them there."""

from edge.guarantee import Guarantee
from edge.models.choose import ModelsState, models_state, promote, roll_back
from edge.models.live import LiveModels
from edge.site import Site


class ModelsView:
    """The models of an agent that runs; other threads call it."""

    def __init__(self, site: Site, live: LiveModels) -> None:
        self._site, self._live = site, live
        self.wanted_studies = site.settings.models.shadow_studies
        self.shipped = site.settings.screening_model

    @property
    def label(self) -> str:
        """Model, version and engine of the next study."""
        return self._live.label

    @property
    def guarantee(self) -> Guarantee:
        """The most that the next report may guarantee."""
        return self._live.guarantee

    def state(self) -> ModelsState:
        """Return the state of all models.

        Raises:
            sqlite3.Error: the database does not answer.
        """
        return models_state(self._site)

    def promote(self, version: str, user: str) -> None:
        """Promote a model, if nothing speaks against it; errors as `choose.promote`."""
        promote(self._site, user=user, version=version)

    def roll_back(self, user: str) -> None:
        """Go back to the previous model; errors as `choose.roll_back`."""
        roll_back(self._site, user=user)
