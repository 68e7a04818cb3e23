"""Hostile associations and requests for the installed agent, at its DICOM and its HTTP door.

After every few of them a sound series is sent, which must be acknowledged and read. The memory of
the agent is measured.
"""

import json
import os
from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path
from random import Random
from typing import Any

from evaluation.hostile.senders import BY_DICOM, BY_HTTP, Attack, Recording, attack, post
from evaluation.process_memory import resident_mb
from evaluation.receiving.sender import Endpoint, Series, copied, send
from evaluation.run import each
from evaluation.world import free_ports, running_agent

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
    (stow_port,) = free_ports(1)
    stow = {"receive__stow__address": f"127.0.0.1:{stow_port}"}
    sent, acknowledged, sizes_mb = list[Series](), 0, list[float]()
    root.mkdir(parents=True, exist_ok=True)
    with running_agent(root, root / "log", **stow, **BOUNDS) as agent:
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
                sizes_mb.append(resident_mb(agent.process.pid))
        outs = [agent.out(one.study_uid, one.series_uid) for one in sent]
        agent.process.wait_until(
            lambda: all((out / "report.json").is_file() for out in outs), "answer", PATIENCE_S
        )
        sizes_mb.append(resident_mb(agent.process.pid))
        return {
            "senders": count,
            "hostile": dict(sorted(kinds.items())),
            "answered": dict(sorted(answered.items())),
            "sound_series": len(sent),
            "acknowledged": acknowledged,
            "reported": sum(_is_read(out / "report.json") for out in outs),
            "left_on_their_way": len(os.listdir(agent.inbox / ".receiving")),
            "growth_mb": sizes_mb[-1] - sizes_mb[0],
        }


def _taken(endpoint: Endpoint, series: Series, by_http: bool) -> bool:
    """Send a series; return whether all of it was acknowledged."""
    if by_http:
        return post(endpoint, series.files)
    return len(send(endpoint, series.files).acknowledged) == len(series.files)


def _is_read(report: Path) -> bool:
    return json.loads(report.read_bytes())["rejection"] is None
