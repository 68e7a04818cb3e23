"""Mutated copies of sound slices: the reader answers with a study or a StudyError, only."""

import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from evaluation.hostile.studies import mutated
from imaging.errors import StudyError
from imaging.read import read_study
from tests.imaging.small_ct import SmallCt
from tests.imaging.volumes import DIRECTIONS, MATRIX, ORIGIN, RAS, SPACING, meta, nifti, nrrd


def _mutants(content: bytes, count: int, seed: int, rest: bytes = b"") -> Iterator[bytes]:
    chance = random.Random(seed)
    return (mutated(content, chance) + rest for _ in range(count))


def _outcomes(folder: Path, victim: Path, mutants: Iterator[bytes]) -> tuple[int, int]:
    """How many were read and refused; anything else that is raised fails the test."""
    read = refused = 0
    for mutant in mutants:
        victim.write_bytes(mutant)
        try:
            read_study(folder)
            read += 1
        except StudyError:
            refused += 1
    return read, refused


@pytest.mark.parametrize(
    ("syntax", "count"),
    [
        ("", 200),
        *(pytest.param(syntax, 60, marks=pytest.mark.long) for syntax in ("4.80", "4.90", "5")),
    ],
    ids=["uncompressed", "JPEG-LS", "JPEG 2000", "RLE"],
)
def test_mutants_in_a_series(
    syntax: str, count: int, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    images = SmallCt(8).images()
    for image in images if syntax else ():
        image.compress(f"1.2.840.10008.1.2.{syntax}", generate_instance_uid=False)
    victim = SmallCt(8).write(tmp_path, images)[4]
    read, refused = _outcomes(tmp_path, victim, _mutants(victim.read_bytes(), count, seed=1))
    assert read + refused == count
    assert syntax or (read > 10 and refused > 50)
    assert capfd.readouterr().err == ""


@pytest.mark.long
@pytest.mark.parametrize(
    "make",
    [
        lambda f: nifti(f / "a.nii", RAS, None),
        lambda f: nrrd(f / "a.nrrd", "space: RAS", DIRECTIONS, ORIGIN),
        lambda f: meta(f / "a.mha", MATRIX, SPACING),
    ],
    ids=["NIfTI", "NRRD", "MetaImage"],
)
def test_mutants_of_volume_files(
    make: Callable[[Path], Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Most mutations are in the header, where a library would write beyond its buffers."""
    victim = make(tmp_path)
    content = victim.read_bytes()
    read, refused = _outcomes(
        victim, victim, _mutants(content[:400], 300, seed=5, rest=content[400:])
    )
    assert read + refused == 300
    assert read > 10
    assert capfd.readouterr().err == ""
