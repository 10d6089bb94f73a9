"""A bare training script: `torchrun bench/first_step.py FILE` leaves the time of its first step.

What a person writes who wants digits trained by DDP, and nothing else. It then waits to be ended.
"""

import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist
from sklearn.datasets import load_digits
from torch.nn.functional import cross_entropy, interpolate
from torch.nn.parallel import DistributedDataParallel

sys.path.insert(0, str(Path(__file__).parents[1]))

from models.small_resnet import small_resnet

dist.init_process_group("gloo")
digits = load_digits()
images = interpolate(torch.from_numpy(digits.images).float()[:, None] / 16, (28, 28))
labels = torch.from_numpy(digits.target)
model = DistributedDataParallel(small_resnet(10, 1))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
batch = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
batch = batch[dist.get_rank() : 96 : dist.get_world_size()]
loss = cross_entropy(model(images[batch]), labels[batch])
loss.backward()  # type: ignore[no-untyped-call]
optimizer.step()
loss.item()
if dist.get_rank() == 0:
    Path(sys.argv[1]).write_text(str(time.time()))
time.sleep(60)
