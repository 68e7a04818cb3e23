"""The Python interface of Overread: read a chest CT from a script or a notebook.

    import overread

    report = overread.screen("ct/")
    for finding in report.findings:
        print(finding.centre_mm, finding.diameter_mm, finding.probability)

``report.possible`` has the possible findings, which are less probable and mostly no nodules.
``report.mask_of(finding)`` has the voxels of one, ``report.to_table()`` a row for each. A
`Screener` reads many studies.

Not a medical device. For research and development only.
"""

from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

_OWN = ("process", "imaging", "protos", "models", "edge")


def _require_own_packages() -> None:
    """Refuse to start where another package of the same name comes first on Python's path.

    Overread installs the top-level packages `process`, `imaging`, `protos`, `models` and `edge`. A
    folder `models` with an `__init__.py` beside a notebook would be imported in their place.
    """
    root = Path(__file__).resolve().parents[1]
    for name in _OWN:
        spec = find_spec(name)
        found = Path(spec.origin).resolve() if spec and spec.origin else None
        if found != root / name / "__init__.py":
            where = found or (list(spec.submodule_search_locations or ()) if spec else "nowhere")
            raise ImportError(
                f"overread needs its own package '{name}' from {root / name}, but Python finds "
                f"{where} first. Rename that folder or file, or start Python from another folder."
            )


_require_own_packages()

from imaging.errors import StudyError  # noqa: E402 - after the check, which says why not
from imaging.volume import Study  # noqa: E402
from overread.api import Outcome, Screener, UnsupportedArray, read_study, screen  # noqa: E402
from overread.report import Report  # noqa: E402

__version__ = version("overread")
__all__ = [
    "Outcome", "Report", "Screener", "Study", "StudyError", "UnsupportedArray", "__version__",
    "read_study", "screen",
]  # fmt: skip


def __dir__() -> list[str]:
    return __all__
