"""The one error that is the person's to mend."""


class BadInput(ValueError):
    """Input that the person can mend: the message says what was wrong, where, and what to do.

    `train.py` prints it without a traceback and ends with `exit_code`.
    """

    exit_code = 2
