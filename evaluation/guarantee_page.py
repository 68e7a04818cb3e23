"""The page's section on the guarantee, written from the JSON of `overread-eval guarantee`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from models.markdown import percent, table


def guarantee_section(result: Mapping[str, Any]) -> str:
    """Markdown: what is promised, what the sample carries, and whether it is kept."""
    terms = result["served"]["guarantee"]
    return "\n".join(
        [
            "## What is promised of missed nodules",
            "",
            _promised(terms),
            "",
            table(_HEADS, _rows(result)),
            _BESIDE,
            "",
            _test(result),
            "",
            f"    {result['command']}" if "command" in result else "",
        ]
    )


_HEADS = ("sets drawn anew", "alpha", "sets", "kept", "mean miss rate", "90th percentile",
          "worst possible", "can fail")  # fmt: skip
_BESIDE = (
    "*Worst possible* is the highest miss rate that any such set could have had on the patients it "
    "is held against, at the least cautious thresholds that it may try. Where the row cannot fail, "
    "even that is within what the luckiest set states, and that it is kept proves nothing. In the "
    "rows of a level that the sample carries nothing is reported without asking: the thresholds "
    "are lowered until alpha binds. Calibration and merger were fitted on these same patients, so "
    "all these sets have seen what they are held against; the test patients have not been seen."
)


def _promised(terms: Mapping[str, Any]) -> str:
    words = (
        f"Of {terms['patients']} validation patients (calibration `{terms['calibration']}`) the "
        f"fitted thresholds promise, with {percent(1 - terms['delta'])} confidence, that at most "
        f"{percent(terms['alpha'])} of nodules are missed by edge and cloud together, on average "
        "over patients. Nodules that the edge never proposed count as missed."
    )
    if terms["holds"]:
        return words
    confident = f"with {percent(terms['confidence'])} confidence"
    if terms["confidence"] <= 0.5:
        confident = "not even with 50 %"
    asked = percent(terms["asked_alpha"])
    return f"{words} Asked for was {asked}: that these patients promise {confident}."


def _rows(result: Mapping[str, Any]) -> list[tuple[str, ...]]:
    rows = []
    for part, words, level in (
        ("carried", "a level that the sample carries", "alpha"),
        ("served", "as it is served: each states its own, mean", "alpha_mean"),
    ):
        for name in ("splits", "draws"):
            one = result[part][name]
            alpha = result[part]["alpha"] if part == "carried" else one[level]
            figures = (one["kept"], one["miss_rate_mean"], one["miss_rate_p90"])
            shown = [str(one["resamples"]), *map(percent, figures), percent(one.get("worst"))]
            able = {True: "yes", False: "no", None: "-"}[one.get("can_fail")]
            rows.append((f"{name}, {words}", percent(alpha), *shown, able))
    return rows


def _test(result: Mapping[str, Any]) -> str:
    one, alpha = result["served"]["test"], result["served"]["guarantee"]["alpha"]
    if one is None:
        return "No test patients were read."
    held = "holds" if one["kept"] else "does not hold"
    return (
        f"Of {one['nodules']} nodules of {one['patients']} test patients {one['lost']} are missed: "
        f"{percent(one['miss_rate'])} on average over patients, and at most "
        f"{percent(one['miss_rate_upper'])} with the same confidence by them alone. The promised "
        f"{percent(alpha)} {held} there."
    )
