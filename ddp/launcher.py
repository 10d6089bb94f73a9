"""torchrun as launch.sh starts it: one host's agent, of a job whose hosts may come and go.

python -m ddp.launcher [torchrun's arguments] train.py [train.py's arguments]

It is torchrun with an agent (`ddp/agent.py`) and, for `--rdzv-backend=elastic`, with meetings of
the hosts (`ddp/rendezvous.py`) of its own. A torch that these do not fit starts jobs of a fixed
number of hosts all the same, as plain torchrun does.
"""

import ctypes
import os
import signal
import sys

import torch
import torch.distributed.run as torchrun
from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.rendezvous import RendezvousClosedError, RendezvousConnectionError

from ddp import outcome
from utils.errors import BadInput

_PR_SET_PDEATHSIG = 1


def main() -> int:
    """torchrun, without its traceback where that tells nothing."""
    # When launch.sh is killed its ranks save and end.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    # Slurm's warning, of which torchrun knows nothing.
    signal.signal(signal.SIGUSR1, lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    os.environ.pop("LOCKSTEP_START", None)
    outcome.expect()
    try:
        _improve_torchrun()
        torchrun.main()
    except SignalException:
        return 1
    except BadInput as error:
        _say(f"error: {error}")
        return error.exit_code
    except RendezvousClosedError:
        _say("the job has ended")
        return 0
    except Exception as error:
        if outcome.said() in ("2", "75"):
            return 1
        if not isinstance(error, RendezvousConnectionError):
            raise
        if outcome.said() == "0":
            return 0
        _say("error: the first host is gone, and with it the job: start it again (--resume auto)")
        return 1
    return 0


def _improve_torchrun() -> None:
    """Give torchrun our agent and meetings; BadInput where they are needed and do not fit."""
    program = next(at for at, word in enumerate(sys.argv) if word.endswith("train.py"))
    try:
        from ddp.agent import install
    except (AttributeError, ImportError) as error:
        unfit = f"ddp/agent.py does not fit torch {torch.__version__} ({error})"
        if "--rdzv-backend=elastic" in sys.argv[:program]:
            raise BadInput(f"{unfit}: give NNODES one number of hosts") from error
        _say(f"warning: {unfit}: plain torchrun starts the ranks")
    else:
        install(sys.argv[program + 1 :])


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
