"""One thread for all tests: what is compared bit for bit must not depend on the number of cores."""

import torch

torch.set_num_threads(1)
