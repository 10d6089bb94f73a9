"""What a process does that its launcher has started again: go on, but not for ever."""

import json
from itertools import takewhile
from pathlib import Path

from configs.schema import Config
from ddp.mail import failures, recall, remember
from engine.exact import world_sizes

_MOST_IN_VAIN = 3  # restarts after failures
_MOST_STARTS = 20  # any: a host may come, and be gone before the first step, again and again


class NoProgress(RuntimeError):
    """Restart after restart began at the same step; another would end like them."""

    is_final = True


def earlier_folder() -> Path | None:
    """The run folder of this job's earlier start; None when this is its first."""
    folder = recall("folder")
    return None if folder is None else Path(folder)


def note_start(folder: Path, step: int) -> None:
    """Remember for a restart where this start of the job goes on; NoProgress at the third in vain.

    Only what the launcher's store holds is remembered: a new job starts anew. A start for the sake
    of a host that came or left follows on no failure.
    """
    remember("folder", str(folder.absolute()))
    starts = [[step, failures()], *json.loads(recall("starts") or "[]")]
    here = list(takewhile(lambda start: start[0] == step, starts))
    remember("starts", json.dumps(here))
    failed = len({count for _, count in here}) > _MOST_IN_VAIN
    if failed or len(here) > _MOST_STARTS:
        raise NoProgress(
            f"{'three' if failed else _MOST_STARTS} restarts without progress: each began at step "
            f"{step} of {folder} and failed; the first failure's message says why"
        )


def note_sizes(config: Config) -> None:
    """Let the launcher of an elastic job know how many processes the run can be shared by."""
    remember("sizes", json.dumps(world_sizes(config)))
