"""A worker's death is told by its process and its signal, whatever the reader met first.

./launch.sh test tests/data/test_forked.py
"""

import os
import signal
import time

from data.forked import LivingForkContext, died


def test_who_died_is_told_and_nobody_who_lives() -> None:
    context = LivingForkContext()
    workers = [context.Process(target=time.sleep, args=(60,), daemon=True) for _ in range(2)]
    for worker in workers:
        worker.start()
    assert died(workers) is None
    os.kill(workers[1].pid or 0, signal.SIGKILL)
    assert str(died(workers)) == (
        f"a loading worker (process {workers[1].pid}) is gone: killed by SIGKILL"
    )
    workers[0].kill()
    workers[0].join()
