"""Charts as PNG files, drawn by matplotlib's objects: no window and no global state.

Matplotlib comes with the extra `train`; it is imported only where something is drawn.
"""

from pathlib import Path
from typing import Any


def new_figure(width: float, height: float) -> Any:
    """Return an empty `matplotlib.figure.Figure`; width and height in inches of 100 pixels."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    layout = ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.06)  # room between panels, in inches
    return Figure(figsize=(width, height), dpi=100, layout=layout)


def legend_above(axes: Any, columns: int) -> None:
    """Put a legend between title and axes, where it hides no data."""
    axes.legend(
        loc="lower center",
        bbox_to_anchor=(0.5, 1.0),
        ncols=columns,
        fontsize="small",
        frameon=False,
    )


def log_x(axes: Any, ticks: tuple[int, ...] = (1, 2, 5)) -> None:
    """Set a logarithmic x axis with plain numbers at ``ticks`` of each decade."""
    from matplotlib.ticker import LogLocator

    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=ticks))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.minorticks_off()


def save_png(figure: Any, path: Path) -> None:
    """Write the figure as PNG, whatever the file is called."""
    figure.savefig(path, format="png")
