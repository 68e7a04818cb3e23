"""Errors that keep the service from starting or running; they concern the operator, not callers.

The errors that callers may receive are in `protos.errors`.
"""


class CloudError(Exception):
    """The service cannot start, or cannot continue."""


class BadSettings(CloudError):
    """A setting is unknown, missing or out of range; the message names it."""


class AddressUnusable(CloudError):
    """The address is invalid, or cannot be bound; the message names it."""


class BatcherFailed(CloudError):
    """No more batches are read: no instance of the model can, or a fault of the program, logged."""
