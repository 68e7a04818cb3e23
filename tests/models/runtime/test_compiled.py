"""A compiled model is kept for the next start, as long as it is what this machine would compile."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx.parser
import openvino
import pytest

from models.runtime import compiled as module
from models.runtime import hardware
from models.runtime.compiled import compiled

DOUBLE = onnx.parser.parse_model(
    '<ir_version: 8, opset_import: ["" : 17]> g (float[1, 3] x) => (float[1, 3] y) {y = Add(x, x)}'
).SerializeToString()
OPTIONS = {"PERFORMANCE_HINT": "LATENCY"}


class Loader:
    """Loads one model by way of a cache, and counts what was compiled."""

    def __init__(self, cache: Path | None) -> None:
        self.cache, self.count = cache, 0

    def __call__(self, identity: bytes = DOUBLE, options: dict[str, str] = OPTIONS) -> None:
        core = openvino.Core()

        def compile_it() -> openvino.CompiledModel:
            self.count += 1
            return core.compile_model(core.read_model(DOUBLE), "CPU", options)

        model = compiled(core, identity, compile_it, options, self.cache)
        (answer,) = model(np.ones((1, 3), np.float32)).values()
        np.testing.assert_array_equal(answer, [[2, 2, 2]])


def _file(cache: Path) -> Path:
    (file,) = cache.iterdir()
    return file


CHANGES: dict[str, Callable[[Path], object]] = {
    "cut off": lambda cache: _file(cache).write_bytes(_file(cache).read_bytes()[:-9]),
    "empty": lambda cache: _file(cache).write_bytes(b""),
    "of another program": lambda cache: module._store(_file(cache), b"something else"),
    "gone": lambda cache: _file(cache).unlink(),
}


def test_a_model_is_compiled_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load = Loader(tmp_path / "cache")
    load()
    load()
    assert load.count == 1
    load(identity=b"another model")
    load(options={"PERFORMANCE_HINT": "THROUGHPUT"})
    monkeypatch.setattr(hardware, "fingerprint", lambda: "another machine")
    load()
    assert load.count == 4
    assert (tmp_path / "cache").stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("change", CHANGES)
def test_what_is_kept_and_cannot_be_used_is_compiled_again(change: str, tmp_path: Path) -> None:
    load = Loader(tmp_path / "cache")
    load()
    CHANGES[change](tmp_path / "cache")
    load()
    load()
    assert load.count == 2


def test_without_a_folder_every_start_compiles(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for cache in (None, tmp_path / "file" / "cache"):
        load = Loader(cache)
        load()
        load()
        assert load.count == 2


def test_those_used_last_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_FILES", 2)
    load = Loader(tmp_path / "cache")
    for name in (b"first", b"second", b"first", b"third", b"first"):
        load(name)
    assert (load.count, len(list((tmp_path / "cache").iterdir()))) == (3, 2)
