"""What the status page shows of the models, and what a person can do with them there."""

from edge.folders import AgentFolders
from edge.guarantee import Guarantee
from edge.models.choose import ModelsState, models_state, promote, roll_back
from edge.models.live import LiveModels
from edge.settings.core import EdgeSettings


class ModelsView:
    """The models of an agent that runs; other threads call it."""

    def __init__(self, settings: EdgeSettings, live: LiveModels) -> None:
        self._settings, self._live = settings, live
        self._folders = AgentFolders.of(settings)
        self.wanted_studies = settings.shadow_studies
        self.shipped = settings.screening_model

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
        return models_state(self._settings, self._folders)

    def promote(self, version: str, user: str) -> None:
        """Promote a model, if nothing speaks against it; errors as `choose.promote`."""
        promote(self._settings, self._folders, user=user, version=version)

    def roll_back(self, user: str) -> None:
        """Go back to the previous model; errors as `choose.roll_back`."""
        roll_back(self._settings, self._folders, user=user)
