"""``overread-eval froc``: the FROC of a file of candidates, whoever proposed them."""

from __future__ import annotations

from evaluation.bootstrap import RESAMPLES, figures
from evaluation.candidates import challenge
from evaluation.froc import RATES
from evaluation.options import Csv, Json, Resamples, Seed
from evaluation.progress import counting
from evaluation.show import show
from evaluation.tables import counts_table, froc_table


def froc_command(
    candidates: Csv,
    annotations: Csv,
    excluded: Csv,
    scans: Csv,
    resamples: Resamples = RESAMPLES,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """FROC and CPM of a file of candidates under the rules of LUNA16."""
    found = challenge(candidates, annotations, excluded, scans)
    with counting("bootstrap") as step:
        value = figures(found.scored, resamples=resamples, seed=seed, on_step=step)
    result = {
        "cpm": value.cpm.value,
        "sensitivity": [at.value for at in value.sensitivity],
        "false_positives_per_scan": list(RATES),
        **found.counts,
        "scans": found.scored.scans,
        "intervals": {
            "cpm": [value.cpm.low, value.cpm.high],
            "sensitivity": [[at.low, at.high] for at in value.sensitivity],
        },
    }
    title = f"FROC on {found.scored.scans} scans"
    show(result, as_json, froc_table(value, title), counts_table(found.counts))
