"""Since when the budget of each unfinished study runs, on the agent's clock."""

from __future__ import annotations


class Begun:
    """The moments by study key; it lives with the process.

    Args:
        start_s: of the agent: then the budget begins of what an earlier one had claimed, whose
            clock tells nothing here.
    """

    def __init__(self, start_s: float) -> None:
        self._start_s = start_s
        self._since_s: dict[str, float] = {}

    def at(self, key: str, since_s: float) -> None:
        """The budget of this study runs since then."""
        self._since_s[key] = since_s

    def since_s(self, key: str) -> float:
        """When the budget of this study began."""
        return self._since_s.get(key, self._start_s)

    def over(self, key: str) -> None:
        """The study has come to its end."""
        self._since_s.pop(key, None)
