"""`python -m configs ARGUMENTS`: checks train.py's arguments before any rank starts, without torch.

Ends with 0, or prints one message and ends with 2. Names of models and datasets, and what is in a
checkpoint, are train.py's to check.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from configs.command import parse
from configs.load import check_overrides, load
from utils.command import refusing
from utils.errors import BadInput


@refusing
def main(argv: Sequence[str]) -> int:
    """0 when train.py could start with `argv`, 2 after one message otherwise."""
    command = parse(argv)
    if command.config is not None:
        load(command.config, command.overrides)
        return 0
    file = Path(command.resume) if command.resume else command.evaluate
    assert file is not None
    if not file.is_file():
        raise BadInput(f"there is no checkpoint file {file}")
    check_overrides(command.overrides)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
