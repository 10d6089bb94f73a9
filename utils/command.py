"""What all commands share: how they read their arguments, and how they refuse bad input."""

import argparse
import os
import signal
import sys
from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path
from typing import NoReturn

from utils.errors import BadInput
from utils.names import hint


class Parser(argparse.ArgumentParser):
    """Raises BadInput, with the usage, where argparse's own would print and exit."""

    def error(self, message: str) -> NoReturn:
        raise BadInput(f"{message}\n{self.format_usage().rstrip()}")

    def read(self, argv: Sequence[str]) -> argparse.Namespace:
        """The arguments in `argv`, in any order; of an unknown one the near option is told."""
        given, unknown = self.parse_known_intermixed_args(argv)
        if unknown:
            name, _, _ = unknown[0].partition("=")
            self.error(f"unknown argument {name}{hint(name, self._option_string_actions)}")
        return given


def refusing(main: Callable[[Sequence[str]], int]) -> Callable[[Sequence[str]], int]:
    """`main` as a command: bad input, or a file that cannot be used, is one message and a 2."""

    @wraps(main)
    def command(argv: Sequence[str]) -> int:
        try:
            code = main(argv)
            sys.stdout.flush()
            return code
        except BrokenPipeError:  # nobody reads any more, as behind `| head`
            with Path(os.devnull).open("w") as nowhere:
                os.dup2(nowhere.fileno(), sys.stdout.fileno())  # for the interpreter's last flush
            return 128 + signal.SIGPIPE
        except (BadInput, OSError) as error:
            print(f"error: {error}", file=sys.stderr)
            return BadInput.exit_code

    return command
