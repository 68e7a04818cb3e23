"""What can be wrong with a model on the way to an answer, sorted by who must act.

ModelError
├── UnknownArtifact      the name is not in the manifest: the operator picks another
├── DamagedArtifact      the file is missing or is not the one that the manifest describes
├── UnfitArtifact        it is of another kind, or lacks a setting: the operator picks another
├── EngineUnavailable    no engine on this machine runs it as asked
└── ModelFailed          it ran, and gave an error or something that is no answer
"""

from __future__ import annotations


class ModelError(Exception):
    """Something is wrong with an artifact or with the engine that runs it."""


class UnknownArtifact(ModelError):
    """No artifact of that name; the message lists those there are."""


class DamagedArtifact(ModelError):
    """The artifact's file is missing, or its content is not what the manifest says."""


class UnfitArtifact(ModelError):
    """The artifact is of another kind than is asked for, or its settings cannot be read with."""


class EngineUnavailable(ModelError):
    """No engine here runs the artifact correctly; the message says what each of them did."""


class ModelFailed(ModelError):
    """The engine raised an error, or the output is not finite."""


class NoWeights(ModelError):
    """A command starts from trained weights and was given none."""
