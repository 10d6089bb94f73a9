"""YAML's surprises, each with the one meaning it has here; runs in a second, needs no torch."""

import random
import string

import pytest
import yaml

from configs.strict_yaml import MAX_DEPTH, read, write


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001),
        ("5e-4", 0.0005),
        ("1E5", 1e5),
        (".5", 0.5),
        ("-1.", -1.0),
        ("300", 300),
        ("-7", -7),
        ("0", 0),
        ("010", "010"),
        ("0x10", "0x10"),
        ("1_000", "1_000"),
        ("1:30", "1:30"),
        ("2024-01-01", "2024-01-01"),
        ("on", "on"),
        ("yes", "yes"),
        ("No", "No"),
        ("true", True),
        ("False", False),
        ("null", None),
        ("~", None),
        ("", None),
        ("'1e-3'", "1e-3"),
        ('"true"', "true"),
        (".inf", ".inf"),
        (".nan", ".nan"),
        ("<<", "<<"),
        ("=", "="),
    ],
)
def test_a_scalar_has_one_meaning(text, value):
    got, _, problems = read(f"key: {text}")
    assert problems == []
    assert got == {"key": value}
    assert type(got["key"]) is type(value)


def test_an_integer_of_thousands_of_digits_stays_text():
    digits = "9" * 5000
    assert read(f"seed: {digits}")[0] == {"seed": digits}


def test_every_key_has_its_line():
    _, lines, _ = read("a: 1\n\n# comment\nb:\n  c: 2\n  d: {e: 3}\n")
    assert lines == {("a",): 1, ("b",): 4, ("b", "c"): 5, ("b", "d"): 6, ("b", "d", "e"): 6}


def test_all_problems_of_a_text_are_found_at_once():
    _, _, problems = read("a: &x 1\nb: *x\nc: !!float 1\nd: 1\nd: 2\n[1]: 3\n")
    assert [line for line, _ in problems] == [1, 2, 3, 5, 6]
    told = " / ".join(what for _, what in problems)
    for word in ("anchor &x", "alias *x", "tag", "d: already given on line 4", "one word"):
        assert word in told


def test_aliases_that_would_grow_without_bound_are_not_followed():
    bomb = "a0: &a0 [x, x]\n" + "".join(
        f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12)
    )
    value, _, problems = read(bomb)
    assert len(problems) == 12 + 11 * 9
    assert len(repr(value)) < 2000


@pytest.mark.parametrize("opening", ["[", "{a: ", "- "])
def test_deep_nesting_is_a_problem_not_a_crash(opening):
    value, _, problems = read(opening * 5000)
    assert value is None
    assert "nested too deep" in problems[-1][1]
    assert read("[" * (MAX_DEPTH - 1) + "]" * (MAX_DEPTH - 1))[2] == []


@pytest.mark.parametrize(
    ("text", "line"),
    [("a: [1\nb: 2\n", 2), ("a: 1\n\tb: 2\n", 2), ("a: 1\n--- \nb: 2\n", 2), ("a: 'x\n", 2)],
)
def test_a_syntax_error_names_its_line(text, line):
    value, _, [(got, what)] = read(text)
    assert value is None
    assert got == line
    assert what.startswith("not YAML: ")


def test_a_control_character_names_its_line():
    assert read("a: 1\nb: \x07\n") == (None, {}, [(2, "character 7 cannot stand in YAML")])


TRICKY = [
    "",
    "~",
    "null",
    "on",
    "1e-3",
    "010",
    "0x1",
    "1:30",
    "<<",
    "=",
    "#",
    "a: b",
    "é",
    "\ud800",
]


def test_written_values_are_read_back_equal_and_by_other_readers_too():
    shared = ["x"]
    values = {
        "text": [*TRICKY, " ", "a\nb", "- x", "&a", "*a", "!t", "x" * 500],
        "numbers": [0, -1, 10**18, 0.1, 1e-30, 1e300, 5e-324, -0.0],
        "others": [None, True, False, [], {}],
        "same": [shared, shared],
    }
    text = write(values)
    assert read(text) == (values, read(text)[1], [])
    assert yaml.safe_load(text) == values


def test_random_text_gives_values_or_problems_never_an_exception():
    draw = random.Random(0)
    letters = "abc01.-+e:,[]{}#&*!|>'\"%@`?\\ \n\t~<=\x00\x85\ufeff" + string.ascii_letters
    for _ in range(2000):
        text = "".join(draw.choices(letters, k=draw.randrange(1, 40)))
        value, _, problems = read(text)
        assert problems or write(value)
