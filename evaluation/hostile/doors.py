"""Hostile associations and requests for the installed agent, at its DICOM and its HTTP door.

After every few of them a sound series is sent, which must be acknowledged and read. Memory, threads
and open files of the agent are measured.
"""

import json
import os
import urllib.request
from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path
from random import Random
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from evaluation.hostile.senders import BY_DICOM, BY_HTTP, Attack, Recording, attack, post
from evaluation.receiving.sender import Endpoint, Series, copied, send
from evaluation.run import each
from evaluation.world import Agent, free_ports, running_agent

SOUND_EVERY = 20
"""Hostile senders between two sound ones."""
DICOM_SHARE = 0.7
"""Of the senders, where both doors are attacked."""
PATIENCE_S = 600.0

BOUNDS: dict[str, Any] = {
    "receive__min_free_mb": 1, "receive__max_instance_mb": 2, "quiet_s": 1.0,
    "receive__timeout_s": 5.0,
}  # fmt: skip


def senders(
    root: Path, sound: Sequence[Path], count: int, seed: int, doors: Collection[str]
) -> dict[str, Any]:
    """Send hostile and sound data in turn to an agent below ``root``; return what became of it.

    ``doors`` are ``dicom``, ``http`` or both; ``sound`` are the files of a series that can be read.

    Raises:
        ServiceFailed: the agent ended, or did not answer the sound series.
    """
    chance, kinds, answered = Random(seed), Counter[str](), Counter[str]()
    stow_port, metrics_port = free_ports(2)
    ports: dict[str, Any] = {
        "receive__stow__address": f"127.0.0.1:{stow_port}",
        "metrics_address": f"127.0.0.1:{metrics_port}",
    }
    sent, acknowledged, sizes = list[Series](), 0, list[dict[str, int]]()
    root.mkdir(parents=True, exist_ok=True)
    with running_agent(root, root / "log", **ports, **BOUNDS) as agent:
        endpoints: dict[str, Endpoint] = {
            "dicom": agent.endpoint, "http": ("127.0.0.1", stow_port)
        }  # fmt: skip
        recording = Recording.of(agent.endpoint, copied(sound[:2], root / "recorded").files)
        for number in each(range(count), "senders"):
            door = "dicom" if chance.random() < DICOM_SHARE else "http"
            door = door if door in doors else next(iter(doors))
            attacks = BY_DICOM if door == "dicom" else BY_HTTP
            kind = chance.choice(sorted(attacks))
            kinds[kind] += 1
            hostile: Attack = attacks[kind]
            answered[kind] += attack(endpoints[door], hostile(recording, chance), chance)
            if (number + 1) % SOUND_EVERY == 0 or number + 1 == count:
                agent.process.require_alive()
                series = copied(sound, root / "sent" / str(number))
                by_http = "http" in doors and ("dicom" not in doors or len(sent) % 2 == 1)
                acknowledged += _taken(endpoints["http" if by_http else "dicom"], series, by_http)
                sent.append(series)
                sizes.append(size_of(agent.process.pid))
        outs = [agent.out(one.study_uid, one.series_uid) for one in sent]
        agent.process.wait_until(
            lambda: all((out / "report.json").is_file() for out in outs), "answer", PATIENCE_S
        )
        sizes.append(size_of(agent.process.pid))
        return {
            "senders": count,
            "hostile": dict(sorted(kinds.items())),
            "answered": dict(sorted(answered.items())),
            "sound_series": len(sent),
            "acknowledged": acknowledged,
            "reported": sum(_is_read(out / "report.json") for out in outs),
            "refusals": refusals(agent, metrics_port),
            "left_on_their_way": len(os.listdir(agent.inbox / ".receiving")),
            "first": sizes[0],
            "last": sizes[-1],
        }


def _taken(endpoint: Endpoint, series: Series, by_http: bool) -> bool:
    """Send a series; return whether all of it was acknowledged."""
    if by_http:
        return post(endpoint, series.files)
    return len(send(endpoint, series.files).acknowledged) == len(series.files)


def _is_read(report: Path) -> bool:
    return json.loads(report.read_bytes())["rejection"] is None


def size_of(pid: int) -> dict[str, int]:
    """Return resident memory in kB, threads and open files of a process."""
    folder = Path(f"/proc/{pid}")
    lines = (folder / "status").read_text().splitlines()
    values = dict(line.split(":", 1) for line in lines if ":" in line)
    return {
        "rss_kb": int(values["VmRSS"].split()[0]),
        "threads": int(values["Threads"]),
        "files": len(os.listdir(folder / "fd")),
    }


def refusals(agent: Agent, metrics_port: int) -> dict[str, int]:
    """Return the counts of refusals by their labels."""
    agent.process.require_alive()
    url = f"http://127.0.0.1:{metrics_port}/metrics"
    with urllib.request.urlopen(url, timeout=30) as answer:
        text = answer.read().decode()
    found = {}
    for family in text_string_to_metric_families(text):
        if family.name.startswith("overread_edge_refused"):
            what = family.name.removeprefix("overread_edge_refused_")
            for sample in family.samples:
                if sample.name.endswith("_total"):
                    found[f"{what}: {', '.join(sample.labels.values())}"] = int(sample.value)
    return dict(sorted(found.items()))
