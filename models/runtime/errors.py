"""The errors of models, sorted by who must act.

ModelError
├── UnknownArtifact      the manifest lacks the name: the operator picks another
├── DamagedArtifact      the file is missing or is not the one that the manifest describes
├── UntrustedManifest    nobody who is trusted signed the manifest, or it was changed since
├── InvalidKey           the file of a key cannot be used
├── UnfitArtifact        it is of another kind, lacks a setting, or breaks the contract
├── EngineUnavailable    no engine on this machine runs it correctly
├── ModelFailed          it raised an error, or its output is not finite
├── NoWeights            a command needs trained weights: the user gives an option
├── BadTable             a CSV file of marks, scans or cubes is damaged, or contradicts another
└── MissingData          a folder of studies or a file of cubes is missing or unusable
"""

from pathlib import Path


class ModelError(Exception):
    """An artifact, the engine that runs it, or the data that it is made from is faulty."""


class UnknownArtifact(ModelError):
    """No artifact has that name; the message lists those that exist."""


class DamagedArtifact(ModelError):
    """The artifact's file is missing, or its content is not what the manifest says."""


class UntrustedManifest(ModelError):
    """A signature is required, and there is none by a trusted key, or it is wrong."""


class InvalidKey(ModelError):
    """The file of a key is missing, or holds no key of this kind."""


class UnfitArtifact(ModelError):
    """The artifact is of another kind, lacks a valid setting, or has other inputs or outputs."""


class EngineUnavailable(ModelError):
    """No engine on this machine runs the artifact correctly."""


class ModelFailed(ModelError):
    """The engine raised an error, or the output is not finite."""


class NoWeights(ModelError):
    """A command that starts from trained weights was given none."""


class BadTable(ModelError):
    """A CSV file is missing, damaged, or contradicts another; ``line`` counts from 1."""

    def __init__(self, path: Path, reason: str, line: int | None = None) -> None:
        place = f"{path}" if line is None else f"{path}, line {line}"
        super().__init__(f"{place}: {reason}")
        self.path = path


class MissingData(ModelError):
    """A folder of studies or a file of cubes is missing or unusable."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
