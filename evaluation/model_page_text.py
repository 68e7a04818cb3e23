"""What stands above and below the tables of `docs/models.md`."""

from __future__ import annotations

HEAD = """# The models

This page is written by `make evaluate` from the files in [results](results), each of which holds
the command that made it. How the networks are built and trained stands below the tables.

**Not a medical device. For research only.** Sensitivity is measured on cubes of nodules of
patients that nothing was learnt from, false positives on three whole scans of other patients
({scans}); one threshold serves both. Intervals are 95 % by bootstrap over patients and scans.
Three scans are few: the intervals on false positives are wide, and only one lesion of each scan
is marked, so a few of the false positives may be true nodules.
"""

SURROUNDED = """## The same nodules deep inside a box

A cube ends 25 mm from its nodule; a lung does not. Here each cube is mirrored at its faces into a
box of 128 voxels. No mirror is a lung (the nodule comes back in it), but where the two tables part,
the one above flatters.

"""

TAIL = """
## How they are made

**Screening** (`models/networks/screening.py`): a fully convolutional 3D CNN over the whole lung
box at 1 mm, uint8 of [-1000, 400] HU in, features at 1/2, 1/4, 1/8 and 1/16 and back to 1/4, maps
of centre, offset and diameter out. Residual blocks are factored into 1x3x3 and 3x1x1: in INT8 the
pair costs about a quarter of two full 3x3x3 convolutions, measured before anything was trained
(docs/decisions.md). A study's box is read twice, once with left and right changed, and the maps
are averaged; then once more at half the resolution for what is larger than 28 mm. Places of 18 mm
and more weigh more: in the lungs of training and validation the full resolution shows nothing so
large but lesions.

**Hybrid** (`models/networks/hybrid.py`): two CNN stems, the screening network's, which stays as it
is, and one of its own, turn a region of 48 mm into 216 tokens of 8 mm; a Transformer encoder
relates them; a class token gives nodule or not, diameter, malignancy and texture, and a way back
up gives the mask.

Both learn from 716 cubes of real nodules (363 patients), four whole scans and sixteen phantoms:

    overread-models train screening --data DATA --minutes 37 --out runs/first
    overread-models train screening --data DATA --minutes 17 --rate 1.5e-3 \\
        --start runs/first/averaged.pt --out runs/second
    overread-models train hybrid --data DATA --minutes 60 --rate 1.2e-3 --out runs/hybrid \\
        --screening runs/first/averaged.pt --screening runs/second/averaged.pt
    overread-models train screening --data DATA --minutes 50 --rate 2e-3 --blocks 1 3 4 \\
        --start runs/second/averaged.pt --out runs/screening
    overread-models export screening --data DATA --weights runs/screening/averaged.pt
    overread-models export hybrid --data DATA --weights runs/hybrid/averaged.pt
    overread-models qat screening --data DATA --minutes 28 --rate 1e-4 \\
        --start models/weights/screening-fp32.onnx --out runs/qat-screening
    overread-models qat hybrid --data DATA --minutes 20 --start runs/hybrid/averaged.pt \\
        --screening runs/second/averaged.pt --screening runs/screening/averaged.pt \\
        --out runs/qat-hybrid
    overread-models int4 screening --data DATA --minutes 12 --rate 1e-4 --share 0.166 \\
        --start models/weights/screening-fp32.onnx --qat runs/qat-screening/averaged.pt
    overread-models fit --data DATA --screening screening-int4
    overread-models fit --data DATA --screening screening-fp32 --hybrid hybrid-fp32
    overread-models fit --data DATA

The shipped weights came from these settings on two cores that did other work meanwhile, the first
20 minutes of screening without phantoms. A second run will not give the same bits, nor quite the
same figures.

`overread-models train sheet PNG --data DATA` draws what the screening network is shown: mosaics of
cubes, cubes mirrored into their surroundings, crops of whole scans with implants; nodules circled
in green, what counts neither way in grey.

- Nodules lie in the middle of their cubes. Mosaics, mirrored cubes and implants into whole scans
  take the middle away; pieces of vessel are implanted the same way, so that a seam tells nothing.
- Hard negatives are mined from the whole training scans by the current weights, every few minutes.
- Masses are made of nodules of 12 mm and more, scaled up to 60 mm.
- The hybrid learns on the screening network's own candidates, an early and the last state's.
- Weights and batch norm statistics are averaged (exponentially); bf16, two cores, no GPU needed.
- INT8: QDQ, uint8 activations, int8 weights for each channel; a convolution's output is added
  before it is rounded, as engines do; ranges from training cubes and scans, then trained in full
  precision to answer as the float network does. INT4: weights of most layers, made from INT8 in
  three steps.
- Who has no runs starts from the artifacts: every `--start` takes `screening-fp32.onnx` or
  `hybrid-fp32.onnx` of `models/weights` too, and `int4` goes on from `screening-int8` itself.
- Calibration, merger and thresholds are fitted on validation cases through the INT8 artifacts.

## Licence and attribution

{licence}
"""
