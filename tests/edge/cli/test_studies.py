"""What the commands on studies print."""

import io

from rich.console import Console

from edge.cli.studies import target_tables
from edge.dicom_out.exports import NotTaken
from edge.dicom_out.overview import DeadLetter, TargetState


def test_targets_lose_no_word_in_80_columns() -> None:
    key, reason = 4 * "01234567", "Cannot understand: the data set has an element [0010,0030] more"
    where = "dicom://MAINARCHIVE@pacs-01.radiology.hospital.example.org:11112"
    letter = DeadLetter("Doe", key, "Doe_Jane-2", 12, "archive-of-the-hospital", 12, reason, "dead")
    lacks = 4123, 7200.0, "Refused: out of resources", [NotTaken("1", "Segmentation", "", 1, "")]
    states = [
        TargetState("archive-of-the-hospital", "dicom", where, "TLS", "", *lacks, (letter,)),
        TargetState("web", "dicomweb", "https://web", "none", "no answer", 0, 0.0, "", [], ()),
        TargetState("old", "", "", "", "is not set up any more", 0, 0.0, "", [], ()),
    ]
    unmade = DeadLetter("Roe", key, "Roe", 1, "", 0, "[red]no date", "not made")
    printed = io.StringIO()
    Console(file=printed, width=80).print(*target_tables(states, [unmade]))
    lines = printed.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    columns = zip(*([cell.strip() for cell in line.split("│")[1:3]] for line in lines
                    if line.startswith("│")), strict=True)  # fmt: skip
    left, right = ("".join(cells).replace(" ", "") for cells in columns)
    for text in ("archive-of-the-hospital", where, "encryption: TLS", "Doe_Jane-2", key,
                 "version 12 to archive-of-the-hospital"):  # fmt: skip
        assert text.replace(" ", "") in left, text
    for text in ("answers", "4123 waiting, the oldest 2 h", "dead letters: 1",
                 "last failure: Refused: out of resources", "no answer", reason,
                 "does not take Segmentation",
                 "after 12 attempts", "[red]no date", "is not set up any more"):  # fmt: skip
        assert text.replace(" ", "") in right, text
    assert any(key in line for line in lines)
