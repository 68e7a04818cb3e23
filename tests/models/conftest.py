"""Networks of tests are tiny: a second thread only waits for the first, and for other tests."""

import torch

torch.set_num_threads(1)
