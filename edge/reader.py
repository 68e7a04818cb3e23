"""The edge's own reader: the screening network, and the thresholds that were fitted with it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from edge.decide import Thresholds
from edge.errors import UnfitModel
from edge.guarantee import Guarantee, guarantee_of_model
from edge.merge import MergeWeights
from edge.settings.core import EdgeSettings
from imaging.preprocess import Preprocessed
from models.runtime.detection import Candidate
from models.runtime.package import WEIGHTS
from models.runtime.screener import Screener, open_screener, read_by


class Screening(Protocol):
    """An open screening network, as `models.runtime.screener` gives it."""

    @property
    def name(self) -> str:
        """Its name in the manifest."""

    @property
    def version(self) -> str:
        """Its version in the manifest."""

    @property
    def engine(self) -> str:
        """The inference engine that runs it."""

    @property
    def settings(self) -> Mapping[str, object]:
        """Its settings in the manifest, thresholds included."""

    def screen(self, box: Preprocessed) -> Sequence[Candidate]:
        """Return the candidates by falling score."""


@dataclass(frozen=True)
class EdgeReader:
    """A screening network with its thresholds, merge weights and guarantee.

    ``guarantee`` is the strongest guarantee that a report may give.
    """

    screener: Screening
    thresholds: Thresholds
    weights: MergeWeights
    guarantee: Guarantee

    @classmethod
    def of(cls, screener: Screening) -> "EdgeReader":
        """Read the thresholds of the screener's own manifest.

        Raises:
            UnfitModel: the manifest lacks one, or a value is out of range.
        """
        try:
            thresholds = Thresholds.from_manifest(screener.settings)
            weights = MergeWeights.from_manifest(screener.settings)
            guarantee = guarantee_of_model(screener.settings, read_by(screener.version))
        except UnfitModel as error:
            raise UnfitModel(f"{screener.name}: {error}") from None
        return cls(screener, thresholds, weights, guarantee)

    @property
    def label(self) -> str:
        """Model, version and engine in one line, for the report."""
        return f"{self.screener.name} {self.screener.version} ({self.screener.engine})"

    def screen(self, box: Preprocessed) -> tuple[Candidate, ...]:
        """Return all candidates of the lung box, by falling score."""
        return tuple(self.screener.screen(box))


def open_configured(settings: EdgeSettings) -> Screener:
    """Open the screening model of the settings; errors as `open_screener`."""
    return open_screener(
        settings.screening_model,
        engine=settings.engine,
        threads=settings.threads,
        keys=settings.models.keys,
        folder=(settings.models.folder or WEIGHTS).absolute(),
    )
