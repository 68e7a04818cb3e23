"""The measured part of `docs/budget.md`: what stands between two marks is written anew."""

from __future__ import annotations

import json
from pathlib import Path

from evaluation import budget_summary, link_page, load_page, policy_page
from evaluation.guarantee_page import guarantee_section

BEGIN, END = "<!-- measured -->", "<!-- /measured -->"


def write_figures(results: Path, page: Path) -> None:
    """Writes what `results` holds into ``page``; what stands around the marks stays."""
    found = {path.stem: json.loads(path.read_text()) for path in sorted(results.glob("*.json"))}
    if "policies" in found:
        policy_page.write_pages(page, found["policies"], results)
    parts = [link_page.render(results), load_page.section(found)]
    if "guarantee" in found:
        parts.insert(0, guarantee_section(found["guarantee"]))
    before, _, rest = page.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    told = "\n".join(part.strip() + "\n" for part in parts if part)
    page.write_text(f"{before}{BEGIN}\n\n{told}\n{END}{after}")
    budget_summary.write_section(page, found)
