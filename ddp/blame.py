"""Whose silence it is: of ranks that wait for each other, the one that the others wait for."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from ddp.board import Standing


class Answer(NamedTuple):
    """What a rank says when it is asked; of one that cannot answer, what others know of it."""

    standing: Standing
    host: str
    begun: int  # collectives that it has begun; -1: it has not met the others
    stack: str  # of its main thread
    neighbours: Sequence[Standing] = ()  # other ranks of its host, from their board

    def written(self) -> dict[str, Any]:
        """JSON types."""
        return self._asdict()

    @classmethod
    def read(cls, letter: dict[str, Any]) -> "Answer":
        """The answer that `written` made JSON of."""
        neighbours = [Standing(*one) for one in letter["neighbours"]]
        return cls(**letter | {"standing": Standing(*letter["standing"]), "neighbours": neighbours})


def blame(
    answers: list[Answer], silent: Mapping[int, Answer | None], limit_s: Callable[[Standing], float]
) -> list[Answer]:
    """The ranks that hold up all others; none while the one they wait for is within its time.

    `silent` holds the ranks that did not answer. A rank without anything known of it never started.
    """

    def is_late(one: Answer, share: float = 1.0) -> bool:
        return one.standing.silent_s > share * limit_s(one.standing)

    never = [rank for rank, known in silent.items() if known is None]
    unknown = [Answer(Standing(rank, 0, 0, "", 0.0, 0.0, False), "", -1, "") for rank in never]
    known = [one for one in silent.values() if one is not None and not one.standing.left]
    stopped = [one for one in known if is_late(one)] + unknown
    if stopped or known or not answers:
        return stopped  # whoever did not answer may be what the others wait for

    def behind(one: Answer) -> tuple[int, bool]:
        return one.begun, one.standing.phase == "meeting"

    least = min(map(behind, answers))
    last = [one for one in answers if behind(one) == least and not one.standing.left]
    if not any(map(is_late, last)):
        return []
    # All of them inside one collective became silent at nearly the same time.
    return [one for one in last if is_late(one, 0.8)]


def one_line(found: list[tuple[Standing, str]], what: str) -> str:
    """`rank 1 (host a, process 7) hangs in data after step 12, silent for 3.1 s`."""
    return "; ".join(_told(standing, host, what) for standing, host in found[:8]) + (
        f"; and {len(found) - 8} more" if len(found) > 8 else ""
    )


def _told(standing: Standing, host: str, what: str) -> str:
    if not standing.pid:
        return f"rank {standing.rank} never started, or its host cannot be reached"
    who = f"rank {standing.rank} (host {host}, process {standing.pid})"
    where = f"in {standing.phase} after step {standing.step}"
    silence = ""
    if what == "is gone":  # its host told others only now and then
        return f"{who} is gone; when it was last heard of it was {where}"
    if what == "hangs":
        silent = standing.silent_s
        silence = ", not to be reached" if silent > 1e8 else f", silent for {silent:.1f} s"
    return f"{who} {what} {where}{silence}"


def report(guilty: list[Answer]) -> str:
    """What a person needs to know of a hang: who, where, and where in the program."""
    lines = [one_line([(one.standing, one.host) for one in guilty], "hangs")]
    if len(guilty) > 1 and all(one.stack for one in guilty):
        lines = ["these ranks wait in the same collective, or each by itself (is the network "
                 "between them up?)", *lines]  # fmt: skip
    for one in guilty[:2]:
        if one.stack:
            lines = [f"rank {one.standing.rank} was here:\n{one.stack.rstrip()}", *lines]
    return "\n".join(lines)


def sentence(guilty: list[Answer], judge: int, *, frozen: bool) -> dict[str, Any]:
    """The letter that ends all ranks because some hang; `frozen`: they cannot end themselves."""
    return {
        "code": 1,
        "line": one_line([(one.standing, one.host) for one in guilty], "hangs"),
        "report": report(guilty),
        "culprits": [one.standing.rank for one in guilty],
        "frozen": frozen,
        "judge": judge,
    }
