"""What can go wrong on the edge itself, apart from the study and from the link.

    EdgeError
    ├── BadSettings                  the configuration is wrong: the operator corrects it
    └── UnfitModel                   the model's manifest lacks what the edge needs: export again

What is wrong with a study is in `imaging.errors`, what happens on the way to the cloud in
`protos.errors`.
"""

from __future__ import annotations


class EdgeError(Exception):
    """The edge cannot work as it is set up."""


class BadSettings(EdgeError):
    """The configuration is wrong; the message names the key, its value and what is allowed."""


class UnfitModel(EdgeError):
    """The manifest of the screening model lacks a setting, or holds one that cannot be."""
