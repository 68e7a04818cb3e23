"""The durable steps of what is received, for those who watch them."""

from enum import Enum


class ReceiveStep(Enum):
    """A durable step of an instance, or of its series."""

    WRITTEN = "written"  # its file is synchronised under a hidden name
    STORED = "stored"  # it lies in the folder of its series, which is synchronised
    ACKNOWLEDGED = "acknowledged"  # told before the acknowledgement only; nothing is written
    COMPLETED = "completed"  # the mark that its series is complete is synchronised
