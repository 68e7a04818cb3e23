import subprocess
from typing import Any

import pytest

from evaluation.errors import ServiceFailed
from evaluation.timing import memory
from evaluation.timing.memory import ALLOCATOR, as_dict


def run(peak: float, loss: float, step: float = 1.0) -> dict[str, Any]:
    """The output of one process; its first step is slow."""
    return {
        "peak_bytes": peak, "took_s": [9.0, step], "parameters": 10, "losses": [2.0, loss],
        "device": "cpu",
    }  # fmt: skip


def test_savings_are_of_medians_and_losses_equal_where_they_should_be() -> None:
    """Half the memory for 1.6 times the time; the first step of a process does not count."""
    result = as_dict(
        {
            "plain": [run(100e6, 1.0), run(120e6, 1.0)],
            "checkpointing": [run(50e6, 1.0, 1.5), run(60e6, 1.0, 1.7)],
            "bf16": [run(60e6, 1.3), run(60e6, 1.3)],
            "checkpointing+bf16": [run(33e6, 1.3), run(33e6, 1.5)],
        }
    )
    cells = memory.memory.table("variants").of(result).cells
    assert [(row[0], row[3], row[-1]) for row in cells] == [
        ("plain", "0.0 %", "equal"), ("checkpointing", "50.0 %", "equal"),
        ("bf16", "45.5 %", "equal"), ("checkpointing, bf16", "70.0 %", "15.4% apart"),
    ]  # fmt: skip
    assert cells[1][4:7] == ["60-70 %", "1.60", "1.60"]


def test_a_process_has_its_savings_and_a_failed_one_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Only the allocator's variants set the allocator."""
    given = list[dict[str, Any]]()

    def ended(line: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        given.append(options["env"])
        return subprocess.CompletedProcess(line, "bf16" in line, '{"peak_bytes": 1}', "")

    monkeypatch.setattr(memory.subprocess, "run", ended)
    assert memory.measure("allocator") == memory.measure("plain") == {"peak_bytes": 1}
    assert [ALLOCATOR.items() <= env.items() for env in given] == [True, False]
    with pytest.raises(ServiceFailed, match="bf16: exit status"):
        memory.measure("bf16")
