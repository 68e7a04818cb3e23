"""What keeps the service from starting or going on: for the operator, never for a caller.

    CloudError
    ├── BadSettings              a setting is unknown, missing or out of range
    ├── AddressUnusable          the address cannot be bound, or is none
    └── ReadingEnded             a fault of ours ended the loop that forms batches

What a caller may meet is in `protos.errors`.
"""

from __future__ import annotations


class CloudError(Exception):
    """The service cannot start as it is set up, or cannot go on."""


class BadSettings(CloudError):
    """A setting is unknown, missing or out of range; the message names it."""


class AddressUnusable(CloudError):
    """The address cannot be bound, or is none; the message names it."""


class ReadingEnded(CloudError):
    """A fault of ours ended the loop that forms batches; the log has the traceback."""
