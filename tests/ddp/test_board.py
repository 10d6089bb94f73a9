"""What the processes of a host read of each other on their board.

./launch.sh test tests/ddp/test_board.py
"""

from pathlib import Path

from ddp.board import START_TIMEOUT_S, Board


def two(folder: Path) -> tuple[Board, Board]:
    """The boards of ranks 4 and 5, of which each sees both."""
    return Board(folder / "board", 2, 0, 4), Board(folder / "board", 2, 1, 5)


def test_each_process_sees_where_every_other_stands(tmp_path: Path) -> None:
    one, other = two(tmp_path)
    one.mark("data", 7)
    one.mark("step")
    seen = {standing.rank: standing for standing in other.standings()}
    assert seen.keys() == {4, 5}
    assert (seen[4].phase, seen[4].step, seen[4].left) == ("step", 7, False)
    assert (seen[5].phase, seen[5].step) == ("start", 0)


def test_a_process_that_has_only_begun_is_not_silent(tmp_path: Path) -> None:
    one, other = two(tmp_path)
    assert all(0 <= standing.silent_s < 60 for standing in one.standings() + other.standings())


def test_a_process_is_held_to_the_limits_that_it_knows_or_its_neighbour(tmp_path: Path) -> None:
    one, other = two(tmp_path)
    one.limit(20.0, 3.0)
    [at_start, late] = other.standings()
    assert (at_start.limit_s, late.limit_s) == (20.0, START_TIMEOUT_S)
    assert one.limits.of_other(late) == 20.0
    other.limits.learn(other.standings())
    assert other.limits.of_other(late) == 20.0
    one.mark("step")
    assert other.limits.of_other(other.standings()[0]) == 3.0


def test_a_process_that_left_is_not_missed_again_though_its_main_thread_still_moves(
    tmp_path: Path,
) -> None:
    one, other = two(tmp_path)
    one.leave()
    one.mark("data")
    assert [standing.left for standing in other.standings()] == [True, False]
