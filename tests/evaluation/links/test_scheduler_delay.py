import threading
from pathlib import Path

from evaluation.links.edge_worker import scheduler_delay_s


def test_the_scheduler_delay_is_the_second_number(tmp_path: Path) -> None:
    """Without a file there is none; the kernel's own count never falls."""
    file = tmp_path / str(threading.get_native_id()) / "schedstat"
    file.parent.mkdir()
    file.write_text("900 1500000000 7\n")
    assert scheduler_delay_s(tmp_path) == 1.5
    assert scheduler_delay_s(tmp_path / "without") == 0.0
    first = scheduler_delay_s()
    assert 0.0 <= first <= scheduler_delay_s()
