"""How a caller names its site: a hospital, or one scanner's edge."""

from __future__ import annotations

SITE_KEY = "overread-site"
"""The caller's metadata that names its site where no certificate does."""

MAX_SITE_CHARACTERS = 64
