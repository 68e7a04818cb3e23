"""Lists every file of the repository with one line of purpose, as it stands in the README.

    python -m evaluation.house [--write]

A module's line is the first of its docstring, an artifact's comes from the manifest; nothing is
imported. Without ``--write`` the list is printed.
"""

from __future__ import annotations

import argparse
import ast
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

from evaluation.errors import EvaluationError

ROOT = Path(__file__).resolve().parents[1]
BEGIN, END = "<!-- files -->\n", "<!-- /files -->\n"

FOLDERS = ("docs", ".ci", "protos", "imaging", "models", "edge", "cloud", "evaluation", "tests")

SAID = {
    "README.md": "This page.",
    "CHANGELOG.md": "What changed, version by version.",
    "CONTRIBUTING.md": "How to set up, check, test and add to it.",
    "LICENSE": "Apache-2.0.",
    "Makefile": "Demo, test, check, evaluate; each sets up what it needs.",
    "pyproject.toml": "Build, dependencies, and the settings of every tool.",
    "constraints.txt": "The exact versions that the make targets install.",
    ".gitignore": "What is never committed.",
    ".ci/run": "The whole of CI: test and check on a fresh clone.",
    "docs/budget.md": "The latency budget for a hospital engineer: what is asked when, and why.",
    "docs/policies.md": "Every way to spend the budget, over every link, with what was chosen.",
    "docs/architecture.md": "The line of one study, both processes, and what fails how.",
    "docs/operations.md": "Installing and running it: every setting, folder, refusal and metric.",
    "docs/models.md": "The networks: data, training, and their figures with the commands.",
    "docs/decisions.md": "Decisions with their reasons, and what was tried and did not work.",
    "docs/report.png": "Picture: the report of one study in a browser.",
    "docs/phantom.png": "Picture: a phantom above a real scan, the same planes of both.",
    "protos/overread.proto": "The contract: one stream a study, and `Describe`.",
    "models/weights/manifest.toml": "The artifacts: checksum, version, settings, figures, licence.",
    "edge/report.html.j2": "The page of a report: self-contained, every value escaped, no script.",
}
"""What files say that cannot speak for themselves; those without a folder head the list."""

MEASURED = {
    ".png": "Picture: {}.",
    ".json": "Figures: {}, with the command that measured them.",
}
"""What `make evaluate` leaves in the documents is named for what was measured."""

GENERATED = "Generated from `overread.proto` by `python -m protos.generate`."


class Unexplained(EvaluationError):
    """A file has no line of purpose: give the module a docstring, or name it in `SAID`."""


def listing(root: Path = ROOT) -> str:
    """The list as Markdown, a heading for each folder, a line for each file that is not empty.

    Raises:
        Unexplained: a file says nothing of its purpose.
    """
    groups: dict[str, list[str]] = {}
    for file in _files(root):
        path = file.relative_to(root)
        line = f"- [`{path.name}`]({path.as_posix()}): {purpose(file, root)}\n"
        groups.setdefault(path.parent.as_posix(), []).append(line)
    return "".join(
        f"\n**{_title(folder)}**\n\n{''.join(lines)}" for folder, lines in groups.items()
    )


def purpose(file: Path, root: Path = ROOT) -> str:
    """The line of one file.

    Raises:
        Unexplained: it has none.
    """
    name = file.relative_to(root).as_posix()
    if name in SAID:
        return SAID[name]
    if "_pb2" in file.name:
        return GENERATED
    if file.suffix == ".onnx":
        return _artifact(file)
    if file.suffix == ".py":
        return _docstring(file) or _mirrored(file, root)
    if file.suffix == ".csv":
        return f"A link's trace, {file.stem}, as `evaluation.trace` replays it."
    if name.startswith("docs/") and file.suffix in MEASURED:
        return MEASURED[file.suffix].format(file.stem.replace("_", " "))
    raise Unexplained(f"{name}: has no line of purpose, give it one in evaluation/house.py")


def rewritten(readme: str, files: str) -> str:
    """The README with the list between its marks replaced.

    Raises:
        Unexplained: it has no such marks.
    """
    if not (BEGIN in readme and END in readme):
        raise Unexplained(f"README.md: lacks the lines {BEGIN.strip()} and {END.strip()}")
    before, after = readme.split(BEGIN, 1)[0], readme.split(END, 1)[1]
    return f"{before}{BEGIN}{files}\n{END}{after}"


def _files(root: Path) -> Iterator[Path]:
    """What is listed, in order; packages' empty ``__init__.py`` and hidden files are not."""
    yield from (root / name for name in SAID if "/" not in name and (root / name).is_file())
    for folder in FOLDERS:
        found = [path for path in (root / folder).rglob("*") if path.is_file()]
        yield from sorted((p for p in found if _counts(p, root / folder)), key=_place)


def _counts(file: Path, folder: Path) -> bool:
    parts = file.relative_to(folder).parts
    passing = any(part.startswith(".") or part == "__pycache__" for part in parts)
    return not passing and file.stat().st_size > 0


def _place(file: Path) -> tuple[str, str]:
    return file.parent.as_posix(), file.name


def _title(folder: str) -> str:
    return "at the top" if folder == "." else f"{folder}/"


def _docstring(module: Path) -> str:
    words = ast.get_docstring(ast.parse(module.read_text(encoding="utf-8"))) or ""
    return (words.splitlines() or [""])[0].replace("``", "`")


def _mirrored(test: Path, root: Path) -> str:
    """The line of a test module without a docstring: it is named for the file that it tests.

    Raises:
        Unexplained: there is no such file.
    """
    path = test.relative_to(root)
    stem = test.stem.removeprefix("test_")
    names = (f"{stem}.py", f"__{stem}__.py")
    mirrored = (Path(*path.parts[1:-1], name) for name in names if path.parts[0] == "tests")
    for tested in mirrored:
        if (root / tested).is_file():
            return f"Tests of `{tested.as_posix()}`."
    raise Unexplained(f"{path.as_posix()}: has no docstring, and is named for no file")


def _artifact(file: Path) -> str:
    manifest = tomllib.loads(file.with_name("manifest.toml").read_text(encoding="utf-8"))
    for entry in manifest.values():
        if entry["file"] == file.name:
            return f"The {entry['kind']} network, {entry['precision'].upper()}."
    raise Unexplained(f"{file.name}: is not in the manifest")


def main() -> int:
    """Prints the list, or with ``--write`` enters it in the README; returns the exit status."""
    parser = argparse.ArgumentParser(prog="evaluation.house", description=__doc__)
    parser.add_argument("--write", action="store_true", help="enter it in the README")
    write = parser.parse_args().write
    readme = ROOT / "README.md"
    try:
        files = listing()
        if write:
            readme.write_text(rewritten(readme.read_text(encoding="utf-8"), files), "utf-8")
        else:
            print(files, end="")
    except EvaluationError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
