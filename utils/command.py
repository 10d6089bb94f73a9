"""What all commands share: how they read their arguments, and how they refuse bad input."""

import argparse
import sys
from collections.abc import Callable, Sequence
from functools import wraps
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
            return main(argv)
        except (BadInput, OSError) as error:
            print(f"error: {error}", file=sys.stderr)
            return BadInput.exit_code

    return command
