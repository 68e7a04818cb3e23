"""Models that openvino has compiled, kept for the next start: loading takes a third of the time.

A file holds what one model, its options and this machine gave, after its own SHA-256. One that is
damaged is compiled again. Nobody but the user may write to the folder.
"""

from __future__ import annotations

import hashlib
import logging
import os
import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

from models.runtime import hardware

with suppress(ImportError):  # without it, nothing is compiled
    import openvino

CACHE = Path("~/.cache/overread/compiled")

MAX_FILES = 16
"""Those that were used last are kept: a second reader has three, of 10 MB each."""

_DIGEST_BYTES = 32

_log = logging.getLogger(__name__)


def compiled(
    core: openvino.Core,
    identity: bytes,
    compile_it: Callable[[], openvino.CompiledModel],
    options: Mapping[str, str],
    cache: Path | None = CACHE,
) -> openvino.CompiledModel:
    """Return what ``compile_it`` gives for the CPU, from the cache where it is there.

    ``identity`` stands for the model: its file and the shapes of its inputs.
    """
    try:
        folder = cache and cache.expanduser()
    except RuntimeError:  # a system user without an entry and without HOME
        folder = None
    if folder is None:
        return compile_it()
    key = repr((hashlib.sha256(identity).hexdigest(), sorted(options.items())))
    name = hashlib.sha256(f"{key}|{hardware.fingerprint()}".encode()).hexdigest()
    file = folder / f"{name}.blob"
    if (content := _load(file)) is not None:
        try:
            return core.import_model(content, "CPU", dict(options))
        except Exception as error:  # the engine's own errors have no common class
            _log.warning("compiled again, %s cannot be used: %s", file, str(error).split("\n")[0])
    model = compile_it()
    _store(file, model.export_model().getvalue())
    return model


def _load(file: Path) -> bytes | None:
    try:
        content = file.read_bytes()
        os.utime(file)
    except OSError:
        return None
    digest, model = content[:_DIGEST_BYTES], content[_DIGEST_BYTES:]
    return model if hashlib.sha256(model).digest() == digest else None


def _store(file: Path, model: bytes) -> None:
    """Write the file at once and whole, and remove the oldest beyond `MAX_FILES`."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with tempfile.NamedTemporaryFile(dir=file.parent, suffix=".part", delete=False) as stream:
            stream.write(hashlib.sha256(model).digest() + model)
        os.replace(stream.name, file)
        kept = sorted(file.parent.iterdir(), key=lambda one: one.stat().st_mtime, reverse=True)
    except OSError as error:
        _log.warning("cannot keep the compiled model in %s: %s", file.parent, error)
        return
    for old in kept[MAX_FILES:]:
        with suppress(OSError):
            old.unlink()
