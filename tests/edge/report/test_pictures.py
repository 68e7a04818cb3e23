"""Pictures of an amended report: which are kept, drawn or taken away."""

from __future__ import annotations

from tests.edge.builders import Site


def test_pictures_of_findings_are_kept_and_a_new_one_is_drawn(site: Site) -> None:
    """The old files are untouched; an added finding is drawn from its ROI; the report says so."""
    site.study("a", pictures=True)
    out = site.places.outbox / "a"
    before = {path.name: path.read_bytes() for path in out.glob("*.webp")}
    assert sorted(before) == ["finding_01.webp", "finding_02.webp", "overview.webp"]
    site.cloud.answers = [2]
    site.turns()
    after = {path.name: path.read_bytes() for path in out.glob("*.webp")}
    assert after.items() >= before.items()
    assert sorted(after) == [
        "finding_01.webp",
        "finding_02.webp",
        "finding_03.webp",
        "overview.webp",
    ]
    assert site.report("a")["picture_note"] == (
        "The overview shows the findings of version 1. "
        "Pictures of version 1: finding 2, finding 1. "
        "Pictures of the ROI that was sent to the cloud: finding 3."
    )


def test_a_removed_finding_loses_its_picture_and_a_missing_picture_is_noted(site: Site) -> None:
    """No picture of a finding that is none is left, and one that is gone is said to be gone."""
    site.study("a", pictures=True)
    out = site.places.outbox / "a"
    (out / "finding_01.webp").unlink()
    site.cloud.answers, site.cloud.probability = [2], 0.01
    site.turns()
    assert [path.name for path in out.glob("*.webp")] == ["overview.webp"]
    assert "Without a picture: finding 1." in site.report("a")["picture_note"]
