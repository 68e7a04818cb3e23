"""Opens the models that an evaluation reads with, those of the agent and the cloud by default."""

from __future__ import annotations

from enum import Enum

from cloud.settings import load_settings as load_cloud_settings
from edge.settings import load_settings as load_edge_settings
from evaluation.reading import Reads, edge_alone, edge_and_cloud
from models.runtime.screener import open_screener
from models.runtime.second_reader import SecondReader, open_second_reader


class Stage(Enum):
    """How far a candidate goes."""

    EDGE = "edge"
    BOTH = "both"


def open_reads(stage: Stage, model: str | None, cloud_model: str | None) -> Reads:
    """The reader of `stage`, with the models named or those that the settings name."""
    edge = load_edge_settings(screening_model=model)
    screener = open_screener(edge.screening_model, engine=edge.engine, threads=edge.threads)
    if stage is Stage.EDGE:
        return edge_alone(screener)
    return edge_and_cloud(screener, open_second(cloud_model), edge)


def open_second(cloud_model: str | None) -> SecondReader:
    """The second reader, with the model named or that of the cloud's settings."""
    cloud = load_cloud_settings(model=cloud_model)
    return open_second_reader(cloud.model, engine=cloud.engine, threads=cloud.threads)
