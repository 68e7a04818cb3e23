"""``overread-eval profile``: memory, operators and link of a study, beside what the CPU can do.

The installed agent reads a study again and again, with a cloud on loopback. Memory and link are
those of their metrics. Both networks are timed layer by layer, without them.
"""

import json
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from evaluation.phantoms import STUDIES, prepare, whole_chest
from evaluation.process_memory import peak_memory, together_mb
from evaluation.receiving.receiving import ANSWER_S, put
from evaluation.receiving.sender import copied
from evaluation.run import SHARE, Bar, Result, Table, command, each
from evaluation.timing.operators import achieved, layers_of, peak, shares
from evaluation.world import free_ports, running_agent, running_cloud, scraped
from imaging.dicom.arrival import files_of
from imaging.dicom.header import is_dicom, read_head
from models.runtime import hardware
from models.runtime.artifacts import find
from models.runtime.errors import MissingData

READINGS = 10
"""Readings, after one to warm up."""

BOX = (256, 224, 320)
"""Voxels of the lung box that the screening network is timed with."""

MAX_MB = 1200.0
"""Required of the agent and its children together."""

SHOWN = 12
"""Layers of each network in the table."""

MILLI, GIGA = 1e3, 1e9


def bars(result: Result) -> Iterator[Bar]:
    """Yield the memory of the agent."""
    what = f"memory of the agent and its children, {result['slices']} slices"
    yield Bar(what, result["together_mb"], MAX_MB, "{:.0f} MB")


@command(
    Table("memory", {"what": "memory", "mb": ("MB", "{:.0f}")}),
    Table("link", {"what": "link", "value": ("each study", "{:.1f}")}),
    Table("networks", {
        "network": "network", "threads": "threads", "took_ms": ("pass ms", "{:.1f}"),
        "gop": ("GOP", "{:.1f}"), "gops": ("GOP/s", "{:.0f}"),
        "peak_gops": ("peak", "{:.0f}"), "peak_fp32_gops": ("peak FP32", "{:.0f}"),
        "at_peak": ("time at the peak", SHARE), "slower": ("products below it", SHARE),
        "other": ("other operators", SHARE),
    }),
    Table("operators", {"network": "network", "operator": "operator",
                        "took_ms": ("ms", "{:.2f}"), "share": ("share", SHARE)}),
    Table("layers", {
        "network": "network", "layer": "layer", "operator": "operator",
        "took_ms": ("ms", "{:.2f}"), "share": ("share", SHARE), "gops": ("GOP/s", "{:.0f}"),
        "of_peak": ("of the peak", SHARE),
    }, title="The slowest layers"),
    "{slices} slices, {readings} readings; {cpu}, {cores} cores",
    bars=bars,
)  # fmt: skip
def profile(
    study: Annotated[
        Path | None, typer.Argument(help="Folder of one series in DICOM; a phantom if omitted.")
    ] = None,
    slices: Annotated[int, typer.Option(min=40, help="Slices of the phantom.")] = 120,
    cloud: Annotated[bool, typer.Option(help="Start a cloud on loopback.")] = True,
) -> dict[str, Any]:
    """Memory by stage, operators by layer against the CPU's peak, and the link, of a study."""
    if study is None:
        chest = whole_chest(slices)
        spacing_mm = (chest.size_mm[0] / slices, *chest.spacing_mm[1:])
        study = prepare([replace(chest, spacing_mm=spacing_mm)], STUDIES)[0].folder
    return {**read_studies(study, cloud), **profile_networks()}


def read_studies(study: Path, with_cloud: bool) -> dict[str, Any]:
    """Have the agent read copies of a study; return memory and link.

    Raises:
        MissingData: the folder has no files, or the study is refused.
    """
    files = [file for file in files_of(study) if is_dicom(read_head(file))]
    if not files:
        raise MissingData(study, "is no folder with DICOM files")
    with ExitStack() as held:
        work = Path(held.enter_context(tempfile.TemporaryDirectory(prefix="overread-profile-")))
        address = f"127.0.0.1:{free_ports(1)[0]}"
        service = held.enter_context(running_cloud()) if with_cloud else None
        to: dict[str, Any] = (
            {"cloud__address": service.address, "deadline_s": 60.0} if service else {}
        )
        agent = held.enter_context(
            running_agent(work / "site", work / "log", metrics_address=address, **to)
        )
        pid = agent.process.pid
        with peak_memory(pid, together=True) as most:
            for number in each(range(READINGS + 1), "readings"):
                report = put(agent, copied(files, work / f"study-{number}")) / "report.json"
                agent.process.wait_until(report.is_file, "answer", ANSWER_S, poll_s=0.005)
                found = json.loads(report.read_bytes())
                if found["rejection"] is not None:
                    raise MissingData(study, f"was refused: {found['rejection']['reason']}")
        time.sleep(1.0)  # the child that read has ended by then
        steady_mb = together_mb(pid)
        edge = scraped(f"http://{address}/metrics")
        there = scraped(service.metrics) if service else {}
    by_stage = {
        key[1]: size for key, size in edge.items() if key[0] == "overread_edge_memory_peak_bytes"
    }
    memory = {f"{stage}, peak": size / 1e6 for stage, size in by_stage.items()}
    memory["agent and its children together, peak"] = most.together_mb
    memory["agent and its children between studies"] = steady_mb
    if there:
        memory["cloud, peak"] = there["overread_cloud_memory_peak_bytes",] / 1e6
    return {
        "slices": len(files),
        "readings": READINGS,
        "memory": [{"what": what, "mb": size} for what, size in memory.items()],
        "together_mb": most.together_mb,
        "link": link_rows(edge, there, READINGS + 1) if there else [],
    }


Scraped = Mapping[tuple[str, ...], float]


def link_rows(edge: Scraped, cloud: Scraped, studies: int) -> list[dict[str, Any]]:
    """Return what one study cost on the link."""
    totals = {
        "ROIs": sum(value for key, value in cloud.items() if key[0] == "overread_cloud_rois_total"),
        "KB sent by the edge": edge["overread_edge_cloud_bytes_total", "sent"] / 1e3,
        "KB received by the edge": edge["overread_edge_cloud_bytes_total", "received"] / 1e3,
        "ms to encode and decode": MILLI * edge["overread_edge_cloud_coding_seconds_total",],
    }
    rows = [{"what": what, "value": total / studies} for what, total in totals.items()]
    return [
        *rows,
        {
            "what": "ms of a round trip",
            "value": MILLI * edge["overread_edge_cloud_round_trip_seconds",],
        },
    ]


def profile_networks() -> dict[str, Any]:
    """Time both networks layer by layer, as they are used: on all cores, and on one."""
    networks, operators, slowest = [], [], []
    for name, threads in (("screening-int8", hardware.cores()), ("hybrid-int8", 1)):
        layers = layers_of(find(name), BOX, threads)
        most, took_s = peak(threads, int8=True), sum(one.took_s for one in layers)
        ideal_s = sum(one.operations for one in layers) / most
        products_s = sum(one.took_s for one in layers if one.operations)
        networks.append({
            "network": name, "threads": threads, "took_ms": MILLI * took_s,
            "gop": sum(one.operations for one in layers) / GIGA, "gops": achieved(layers) / GIGA,
            "peak_gops": most / GIGA, "peak_fp32_gops": peak(threads, int8=False) / GIGA,
            "at_peak": ideal_s / took_s, "slower": (products_s - ideal_s) / took_s,
            "other": 1 - products_s / took_s,
        })  # fmt: skip
        operators += [
            {"network": name, "operator": kind, "took_ms": MILLI * share * took_s, "share": share}
            for kind, share in shares(layers).items()
        ]
        slowest += [
            {"network": name, "layer": one.name.removesuffix("/Conv/WithoutBiases"),
             "operator": one.kind, "took_ms": MILLI * one.took_s, "share": one.took_s / took_s,
             "gops": one.rate / GIGA if one.operations else None,
             "of_peak": one.rate / most if one.operations else None}
            for one in sorted(layers, key=lambda one: -one.took_s)[:SHOWN]
        ]  # fmt: skip
    return {"networks": networks, "operators": operators, "layers": slowest}
