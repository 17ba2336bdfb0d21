"""Mixtures: proportions, order and which problems, worked by hand or counted; and streams that stand in for the hub."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, strategies as st

from opd.config.schema import Dataset
from opd.data.dataset import load_problems
from opd.data.mixture import mix, shares
from opd.data.problem import Problem
from opd.errors import UserError
from tests.unit.data.test_dataset import SOURCE


def problems(name: str, count: int) -> list[Problem]:
    return [Problem(f"p{number}", f"{number}+1=", str(number + 1), name) for number in range(count)]


SETS = {"long": problems("hard", 100), "short": problems("easy", 20)}


def counted(mixed: list[Problem]) -> Counter:
    return Counter(problem.id.partition("/")[0] for problem in mixed)


@pytest.mark.parametrize(
    ("weights", "num", "expected"),
    [
        ({"long": 3, "short": 1}, None, {"long": 60, "short": 20}),  # all of the scarce set
        ({"long": 1, "short": 1}, None, {"long": 20, "short": 20}),
        ({"long": 30, "short": 1}, None, {"long": 100, "short": 3}),
        ({"long": 0.75, "short": 0.25}, 16, {"long": 12, "short": 4}),
        ({"long": 2, "short": 1}, 10, {"long": 7, "short": 3}),  # 6.67 and 3.33
        ({"long": 1, "short": 1}, 5, {"long": 3, "short": 2}),  # a tie goes to the first
        (None, None, {"long": 100, "short": 20}),
        (None, 12, {"long": 10, "short": 2}),
    ],
)
def test_each_set_has_exactly_its_share(weights: dict[str, float] | None, num: int | None, expected: dict[str, int]):
    assert counted(mix(SETS, weights=weights, num=num, seed=0)) == expected


def test_problems_keep_text_answer_and_domain_and_get_an_id_of_their_own():
    mixed = mix(SETS, weights=None, num=None, seed=0)
    assert len({problem.id for problem in mixed}) == 120
    assert {problem.domain for problem in mixed} == {"hard", "easy"}
    (one,) = [problem for problem in mixed if problem.id == "short/p7"]
    assert replace(one, id="p7") == SETS["short"][7]


def test_which_problems_are_taken_follows_the_seed_alone():
    first, again, other = (mix(SETS, weights={"long": 1, "short": 1}, num=10, seed=seed) for seed in (0, 0, 1))
    assert first == again and first != other
    assert counted(first) == counted(other)
    assert [p.id for p in first] == sorted((p.id for p in first), key=lambda i: (i[0], int(i.partition("/p")[2])))


@given(
    sizes=st.lists(st.integers(1, 60), min_size=2, max_size=4),
    weights=st.lists(st.integers(1, 9), min_size=4, max_size=4),
)
def test_nothing_is_taken_twice_and_shares_are_exact_up_to_one(sizes: list[int], weights: list[int]):
    named = {str(index): size for index, size in enumerate(sizes)}
    weighed = {name: weights[int(name)] for name in named}
    try:
        counts = shares(named, weighed, None)
    except UserError as error:
        assert "problems is zero" in str(error)
        return
    total = sum(counts.values())
    for name, count in counts.items():
        assert 0 < count <= named[name]
        assert abs(count - total * weighed[name] / sum(weighed.values())) < 1


@pytest.mark.parametrize(
    ("weights", "num", "says"),
    [
        (
            {"long": 1, "short": 1},
            50,
            "sources.short: has 20 problems, but its share of num=50 is 25; set num to at most 40",
        ),
        ({"long": 1000, "short": 1}, 10, "weights.short=1: its share of 10 problems is zero"),
    ],
)
def test_a_set_that_is_too_small_or_gets_nothing_is_refused(weights: dict[str, float], num: int, says: str):
    with pytest.raises(UserError) as refused:
        mix(SETS, weights=weights, num=num, seed=0)
    assert says in str(refused.value)


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Dataset:
    """A dataset of parquet files, as the hub has them, in a directory."""
    import pandas as pd

    rows = {"problem": [f"{n}+1=" for n in range(50)], "answer": [str(n + 1) for n in range(50)], "id": list("x" * 50)}
    rows["id"] = [f"p{n}" for n in range(50)]
    (tmp_path / "repository").mkdir()
    pd.DataFrame(rows).to_parquet(tmp_path / "repository" / "train-00000-of-00001.parquet")
    monkeypatch.chdir(tmp_path)
    return replace(SOURCE, hub="repository")


def test_a_stream_gives_the_first_rows_of_what_a_download_gives(repository: Dataset):
    whole = load_problems(repository, data_dir=None)
    streamed = load_problems(replace(repository, streaming=True, limit=7), data_dir=None)
    assert len(whole) == 50 and streamed == whole[:7]


def test_a_stream_without_a_field_is_refused_by_it(repository: Dataset):
    with pytest.raises(UserError, match="has no field 'question'"):
        load_problems(replace(repository, streaming=True, limit=7, problem_field="question"), data_dir=None)


def test_a_stream_that_breaks_off_is_refused_in_one_sentence(repository: Dataset):
    (file,) = Path(str(repository.hub)).glob("*.parquet")
    content = file.read_bytes()
    file.write_bytes(content[:100] + bytes(200) + content[300:])
    with pytest.raises(UserError) as refused:
        load_problems(replace(repository, streaming=True, limit=7), data_dir=None)
    assert "\n" not in str(refused.value)
