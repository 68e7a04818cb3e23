"""Errors of model updates.

ModelUpdateError
├── UpdatesOff       models.keys or cloud.address is not set, or this is not the agent's user
├── FetchFailed      the cloud offers none, or the transfer broke off: fetch again
├── RefusedModel     what came is damaged, unsigned, or no model for this edge; it is discarded
└── NotPromotable    there is no such model, it is incomplete, or it agrees too little
"""

from edge.errors import EdgeError


class ModelUpdateError(EdgeError):
    """A model cannot be fetched, promoted or rolled back."""


class UpdatesOff(ModelUpdateError):
    """Models are not taken from a cloud with these settings, or by this user."""


class FetchFailed(ModelUpdateError):
    """The model did not come, or not whole; fetch it again."""


class RefusedModel(ModelUpdateError):
    """What came from the cloud is not used, and was discarded."""


class NotPromotable(ModelUpdateError):
    """The model may not be promoted, or there is none to go back to."""
