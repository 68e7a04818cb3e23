"""The cloud that is started for one evaluation."""

from __future__ import annotations

import pytest

from evaluation.errors import ServiceFailed
from evaluation.service import cloud_service


def test_cloud_that_cannot_start_says_why() -> None:
    """A model that does not exist ends the service at once; its own words are handed on."""
    with pytest.raises(ServiceFailed, match=r"ended with 1: .+"), cloud_service("no-such-model"):
        pass
