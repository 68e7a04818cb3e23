import subprocess
from typing import Any

import pytest

from evaluation.errors import ServiceFailed
from evaluation.timing import memory
from evaluation.timing.memory import ALLOCATOR, as_dict


def run(peak: float, loss: float, step: float = 1.0) -> dict[str, Any]:
    """The output of one process; its first step is slow."""
    return {
        "peak_bytes": peak, "tensor_bytes": peak / 2, "took_s": [9.0, step], "parameters": 10,
        "losses": [2.0, loss], "device": "cpu",
    }  # fmt: skip


@pytest.fixture
def result() -> dict[str, Any]:
    found = {
        "plain": [run(100e6, 1.0), run(120e6, 1.0)],
        "checkpointing": [run(50e6, 1.0, 1.5), run(60e6, 1.0, 1.7)],
        "bf16": [run(60e6, 1.3), run(60e6, 1.3)],
        "bf16+checkpointing": [run(33e6, 1.3), run(33e6, 1.5)],
    }
    return as_dict(found)


def test_savings_are_of_medians_against_the_plain_step(result: dict[str, Any]) -> None:
    """Half the memory for 1.6 times the time; the first step of a process does not count."""
    plain, less, *_ = result["variants"]
    assert plain["peak_mb_saved"] == 0
    assert less["peak_mb_saved"] == pytest.approx(0.5)
    assert less["step_s"] == pytest.approx(1.6)
    assert less["published"] == "60-70 %"
    assert result["rounds"] == 2


def test_losses_are_compared_where_they_should_be_equal(result: dict[str, Any]) -> None:
    assert [one["losses"] for one in result["variants"]] == ["-", "equal", "-", "15.4 % apart"]


def test_the_table_has_a_row_for_each(result: dict[str, Any]) -> None:
    assert list(memory.memory.table("variants").of(result).cells[1]) == [
        "checkpointing", "10", "55", "50.0 %", "28", "50.0 %", "60-70 %", "1.60", "1.60", "equal"
    ]  # fmt: skip


def test_every_published_figure_has_its_variant() -> None:
    assert set(memory.PUBLISHED) <= set(memory.VARIANTS)
    assert memory.VARIANTS[0] == "plain"
    assert len(set(memory.VARIANTS)) == len(memory.VARIANTS)


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
