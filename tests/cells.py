"""What must hold after a fault: how soon the job ends, whom it blames, what it leaves."""

import re

from tests.faults import Ended, Fault

HANG_S, START_S = 3.0, 12.0
OPTIONS = (
    f"faults.hang_timeout_s={HANG_S}",
    f"faults.start_timeout_s={START_S}",
    "train.eval_batch=64",
    "data.workers=1",
)
HANGS = ("stop", "sleep", "lock")
STARTS = ("launch", "start")  # before the first step


def verdict(fault: Fault, ended: Ended) -> list[str]:
    """What is wrong with how a job ended after `fault`; empty when all is right."""
    wrong = []
    limit = 5.0
    if fault.kind in HANGS:
        limit += START_S if fault.phase in STARTS else HANG_S
    if ended.seconds > limit:
        wrong.append(f"{ended.seconds:.1f} s, not {limit:g}")
    if None in ended.codes or 0 in ended.codes:
        wrong.append(f"codes {ended.codes}")
    if ended.first != fault.rank:
        wrong.append(f"rank {ended.first} ended first")
    if ended.left:
        wrong.append(f"left {ended.left}")
    what = "hangs" if fault.kind in HANGS else "(?:failed|died)"
    said = re.search(rf"rank (\d+) \(host \S+ process \d+\) {what} in (\w+)", ended.said)
    if said is None or int(said[1]) != fault.rank:
        wrong.append("the rank is not named")
    # A worker is missed when its batch is: before the step that the fault happened in, or after.
    elif said[2] != fault.phase.replace("launch", "start") and fault.kind != "worker":
        wrong.append(f"said to be in {said[2]}")
    # An error with a cause is one traceback in several parts.
    parts = ended.said.count("the direct cause of") + ended.said.count("During handling of the")
    tracebacks = ended.said.count("Traceback (most") - parts
    if tracebacks != (fault.kind in ("raise", "memory", "worker")):
        wrong.append(f"{tracebacks} tracebacks")
    if fault.kind == "sleep" and "time.sleep(1000)" not in ended.said:
        wrong.append("no stack")
    return wrong
