"""The benchmarks' own arithmetic: whose turn it is, what a ratio is, what the table shows.

./launch.sh test tests/bench
"""

import importlib
from pathlib import Path

import pytest

from bench import paired
from bench.__main__ import NAMES, main
from bench.paired import Done, Turns, over_ranks, ratios, record, spread, take_turns
from bench.table import newest, table


def test_a_program_and_a_bare_loop_take_turns_there_and_back() -> None:
    told: list[str] = []
    turns = Turns(lambda: lambda: told.append("bare"), steps=2, cycles=2, warm_up=1)

    def program() -> None:
        for _ in range(1000):
            turns.step()
            told.append("step")

    with pytest.raises(Done):
        program()
    cycle = ["step", "step", "bare", "bare", "step", "step"]
    assert told == ["bare", *cycle * 3]
    assert [len(times) for times in turns.times.values()] == [2, 2]


def test_sides_run_forth_and_back_after_a_warm_up() -> None:
    told: list[str] = []
    sides = {name: (lambda name=name: told.append(name)) for name in "ab"}
    times = take_turns(sides, cycles=2, warm_up=1)
    assert "".join(told) == "ab" + "abba" * 2
    assert [len(times[name]) for name in "ab"] == [2, 2]


def test_a_ratio_is_of_neighbours_with_cpu_added_and_the_slowest_rank_waited_for() -> None:
    ranks = [
        {"ours": [(1.0, 2.0), (30.0, 3.0)], "bare": [(1.0, 2.0), (10.0, 6.0)]},
        {"ours": [(3.0, 4.0), (10.0, 9.0)], "bare": [(1.0, 1.0), (10.0, 4.0)]},
    ]
    found = ratios(over_ranks(ranks), "ours", "bare")
    assert found["cpu"].median == found["cpu"].quartiles[0] == 2.0
    assert found["wall"].median == (4.0 / 2.0 + 9.0 / 6.0) / 2


def test_the_interval_holds_the_median_and_narrows_with_more_values() -> None:
    few, many = spread([1.0, 2.0, 3.0]), spread([1.0, 2.0, 3.0] * 20)
    for found in (few, many):
        assert found.interval[0] <= found.median == 2.0 <= found.interval[1]
    assert few.interval[1] - few.interval[0] > many.interval[1] - many.interval[0]


def test_the_table_shows_the_newest_result_of_each_case(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paired, "RESULTS", tmp_path)
    monkeypatch.setattr("bench.table.RESULTS", tmp_path)
    for case, value in (("a", 1.0), ("b", 2.0), ("a", 3.0)):
        record("overhead", {"case": case, "ratio": spread([value])})
    shown = table(newest())
    assert "| overhead | case a | ratio | 3 |" in shown
    assert "| overhead | case b | ratio | 2 |" in shown
    assert "| ratio | 1 |" not in shown
    assert "torch" in shown


@pytest.mark.parametrize("name", NAMES)
def test_every_benchmark_that_is_named_is_there(name: str) -> None:
    assert callable(importlib.import_module(f"bench.{name}").run)


def test_an_unknown_benchmark_is_told_with_a_near_name(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["overhed"]) == 2
    assert "did you mean 'overhead'" in capsys.readouterr().err
