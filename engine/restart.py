"""What a process does that its launcher has started again: go on, but not for ever."""

import json
from pathlib import Path

from configs.schema import Config
from ddp.mail import failures, recall, remember
from engine.exact import world_sizes

_MOST_IN_VAIN = 3


class NoProgress(RuntimeError):
    """Restart after restart began at the same step; another would end like them."""

    is_final = True


def earlier_folder() -> Path | None:
    """The run folder of this job's earlier start; None when this is its first."""
    folder = recall("folder")
    return None if folder is None else Path(folder)


def note_start(folder: Path, step: int) -> None:
    """Remember for a restart where this start of the job goes on; NoProgress at the third in vain.

    Only what the launcher's store holds is remembered: a new job starts anew. A start that follows
    on hosts that came or went, and on no failure, takes the place of the one before it.
    """
    remember("folder", str(folder.absolute()))
    starts = [*json.loads(recall("starts") or "[]")[: failures()], step]
    remember("starts", json.dumps(starts))
    if len(starts) > _MOST_IN_VAIN and len(set(starts[-1 - _MOST_IN_VAIN :])) == 1:
        raise NoProgress(
            f"three restarts without progress: each began at step {step} of {folder} and failed; "
            "the first failure's message says why"
        )


def note_sizes(config: Config) -> None:
    """Let the launcher of an elastic job know how many processes the run can be shared by."""
    remember("sizes", json.dumps(world_sizes(config)))
