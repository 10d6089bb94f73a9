"""One thread a process, as torchrun gives it: equal thread counts are equal bits."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

torch.set_num_threads(1)
