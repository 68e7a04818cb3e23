"""``overread-eval``: one command for every figure that the project states.

The result goes to stdout, as a table or as JSON; progress and remarks go to stderr.
"""

from evaluation.accuracy.calibration import calibration
from evaluation.accuracy.detect import detect
from evaluation.accuracy.luna16 import froc
from evaluation.accuracy.nodules import nodules
from evaluation.accuracy.whole import whole
from evaluation.faults.nothing_lost import nothing_lost
from evaluation.hostile.clients import hostile_clients
from evaluation.hostile.fuzz import fuzz
from evaluation.lesion_insertion.characterization import characterization
from evaluation.lesion_insertion.command import lesion_insertion
from evaluation.links.link import link
from evaluation.links.wire import wire
from evaluation.load.load import load
from evaluation.receiving.receiving import receiving
from evaluation.run import Command, register, run_program
from evaluation.stability import robustness
from evaluation.timing.latency import latency
from evaluation.timing.memory import memory
from evaluation.timing.network import network
from evaluation.timing.profile import profile
from evaluation.training.commands import curve, distillation, pruning, quantization
from process.command_line import program

app = program(
    "overread-eval",
    "Measures Overread: one command for every claim. Not a medical device.",
    completion=False,
)


MEASURED: tuple[Command, ...] = (
    whole, nodules, lesion_insertion, calibration, characterization, detect, robustness, froc,
    latency, profile, network, memory, link, wire, nothing_lost, load, fuzz, hostile_clients,
    receiving, pruning, distillation, quantization, curve,
)  # fmt: skip
"""The commands that are on the harness of `evaluation.run`."""

register(app, MEASURED)


def main() -> None:
    """Run ``overread-eval``; an error ends it with one line on standard error."""
    run_program(app)


if __name__ == "__main__":
    main()
