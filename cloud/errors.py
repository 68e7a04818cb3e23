"""What keeps the service from starting: for the operator, never for a caller.

    CloudError
    ├── BadSettings              a setting is unknown, missing or out of range
    └── AddressUnusable          the address cannot be bound, or is none

What a caller may meet is in `protos.errors`.
"""

from __future__ import annotations


class CloudError(Exception):
    """The service cannot start as it is set up."""


class BadSettings(CloudError):
    """A setting is unknown, missing or out of range; the message names it."""


class AddressUnusable(CloudError):
    """The address cannot be bound, or is none; the message names it."""
