"""Measure: python -m bench NAME [option ...]; one JSON line a result in bench/results/NAME.jsonl.

overhead    our step beside the most careful bare DDP loop, and a step that does nothing
peers       the same work through Lightning, accelerate and ignite (requirements-bench.txt)
heartbeat   what watching and agreeing to stop cost a step
order       the order of samples beside torch's DistributedSampler
startup     imports, and from the launch to the first step
exact       what the same bits on any number of processes cost
growth      one rank of 8, 1,024 and 65,536
pipeline    whole training pipelines beside a careful loop that augments by PIL
checkpoint  how long a save holds up the loop
layouts     convolutions channels last and not, layer by layer
loading     memory and time of taking in one file of weights on four ranks
sizes       bytes of a module and of a state dict, and what half precision costs in accuracy
watching    what the report, the metrics and the rows cost a run
table       the newest results, written into docs/performance.md
"""

import importlib
import os
import sys

from utils.errors import BadInput
from utils.names import pick

NAMES = {line.split()[0]: line for line in (__doc__ or "").splitlines()[2:]}


def main(argv: list[str]) -> int:
    """Run one benchmark with its own options; 2 for a name that is none."""
    if not argv or argv[0] in ("-h", "--help"):
        print(__doc__)
        return 0 if argv else 2
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # as torchrun sets it; before torch is imported
    try:
        pick(NAMES, argv[0], "benchmark")
    except BadInput as error:
        print(error, file=sys.stderr)
        return 2
    importlib.import_module(f"bench.{argv[0]}").run(argv[1:])
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
