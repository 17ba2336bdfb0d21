import random
import re
from collections import Counter
from itertools import islice, pairwise

import pytest

from opd.config.worlds import DIFFICULTIES, check_mix
from opd.data.arithmetic import careless_solution, draw, solution, split_of
from opd.data.problem import Problem
from opd.data.tasks import load, stream
from opd.errors import UserError

MIX = {"addition": [2, 3], "subtraction": [2, 3], "multiplication": [2, 3], "chain": [3, 4, 5]}


def by_python(problem: str) -> int:
    """The right answer, by Python's integers and an independent reading of the text."""
    first, rest = re.fullmatch(r"(-?\d+)(.*?)=?", problem).groups()
    total = int(first)
    for sign, term in re.findall(r"([-+*])(\d+)", rest):
        total = {"+": total + int(term), "-": total - int(term), "*": total * int(term)}[sign]
    return total


@pytest.mark.parametrize(
    ("problem", "trace"),
    [
        ("47+85=", "7+5=12,4+8+1=13#### 132"),
        ("20+30=", "0+0=0,2+3=5#### 50"),
        ("85-47=", "5-7=-2+10=8,8-4-1=3#### 38"),
        ("85-78=", "5-8=-3+10=7,8-7-1=0#### 7"),
        ("100-100=", "0-0=0,0-0=0,1-1=0#### 0"),
        ("200-101=", "0-1=-1+10=9,0-0-1=-1+10=9,2-1-1=0#### 99"),
        ("47*6=", "7*6=42,4*6=24+4=28#### 282"),
        ("0*7=", "0*7=0#### 0"),
        ("7+8-5+9=", "7+8=15,15-5=10,10+9=19#### 19"),
    ],
)
def test_trace(problem: str, trace: str):
    assert solution(problem) == trace


@pytest.mark.parametrize("domain", MIX)
def test_every_answer_and_every_step_of_every_difficulty_is_right(domain: str):
    for difficulty in DIFFICULTIES[domain]:
        rng = random.Random(difficulty)
        for _ in range(200):
            problem = draw(rng, split="train", domain=domain, difficulty=difficulty)
            assert problem.domain == domain
            assert int(problem.answer) == by_python(problem.problem)
            scratchpad, mark, answer = solution(problem.problem).partition("#### ")
            assert mark and answer == problem.answer
            for step in scratchpad.split(","):
                # Each side begins with the value of the one before it: 4*6=24+4=28, 5-7=-2+10=8.
                sides = step.split("=")
                for left, right in pairwise(sides):
                    assert by_python(left) == int(re.match(r"-?\d+", right)[0]), (problem, step)


def test_difficulty_is_digits_or_terms():
    rng = random.Random(0)
    for difficulty in (2, 4):
        left, right = draw(rng, split="train", domain="addition", difficulty=difficulty).problem.rstrip("=").split("+")
        assert len(left) == len(right) == difficulty
    chain = draw(rng, split="train", domain="chain", difficulty=5).problem
    assert len(re.findall(r"\d", chain)) == 5


def test_chains_stay_between_0_and_20():
    rng = random.Random(0)
    for _ in range(500):
        problem = draw(rng, split="train", domain="chain", difficulty=8).problem
        totals = [int(step.rpartition("=")[2]) for step in solution(problem).partition("#### ")[0].split(",")]
        assert all(0 <= total <= 20 for total in totals)


@pytest.mark.parametrize("text", ["", "47=", "4.7+1=", "2+3*4=", "-3+4=", "٣+٤=", "1+2+", "a+b="])
def test_what_is_no_problem_has_no_solution(text: str):
    with pytest.raises(ValueError, match="is not a problem"):
        solution(text)


def test_lengths_are_mixed():
    rng = random.Random(0)
    lengths = [len(solution(problem.problem)) for problem in islice(stream("train", rng=rng, mix=MIX), 500)]
    assert min(lengths) < 20 and max(lengths) > 40 and max(lengths) <= 64


# ---- splits


def test_train_and_test_share_no_problem_whatever_the_seed():
    test = {problem.problem for seed in range(3) for problem in load("test", num=200, seed=seed, mix=MIX)}
    train = {problem.problem for seed in range(3) for problem in load("train", num=1500, seed=seed, mix=MIX)}
    assert not test & train


def test_a_sum_and_its_mirror_image_are_in_one_split():
    rng = random.Random(0)
    for _ in range(300):
        a, b = rng.randrange(10, 1000), rng.randrange(10, 1000)
        assert split_of(f"{a}+{b}") == split_of(f"{b}+{a}")


def test_the_split_is_stable_and_about_one_in_eight_is_held_out():
    assert [split_of(text) for text in ("47+85", "37+85", "47*6", "21*6", "7+8-5+9")] == SPLITS
    held_out = sum(split_of(f"{a}+{b}") == "test" for a in range(10, 100) for b in range(a, 100))
    assert 0.09 < held_out / 4095 < 0.16


SPLITS = ["train", "test", "train", "test", "test"]


def test_load_is_deterministic_distinct_and_even():
    problems = load("test", num=180, seed=0, mix=MIX)
    assert problems == load("test", num=180, seed=0, mix=MIX)
    assert problems != load("test", num=180, seed=1, mix=MIX)
    assert len({problem.id for problem in problems}) == 180
    cells = Counter(tuple(problem.id.split("-")[:2]) for problem in problems)
    assert len(cells) == 9 and set(cells.values()) == {20}
    assert load("test", num=7, seed=0, mix=MIX) == problems[:7]
    assert all(isinstance(problem, Problem) for problem in problems)


def test_a_cell_without_problems_leaves_its_share_to_the_others():
    problems = load("train", num=400, seed=0, mix={"multiplication": [1], "addition": [3]})
    cells = Counter(problem.domain for problem in problems)
    assert cells["multiplication"] < 80 < cells["addition"] and cells.total() == 400


def test_too_many_problems_are_refused_with_the_number_there_is():
    with pytest.raises(UserError, match=r"arithmetic: 500 different train problems .* multiplication 1 has only \d+;"):
        load("train", num=500, seed=0, mix={"multiplication": [1]})


@pytest.mark.parametrize(
    ("mix", "said"),
    [
        ({}, "the mix is empty"),
        ({"addition": []}, "the mix is empty"),
        ({"addition": [2, 17]}, "addition has no difficulty 17; it has 2 to 6"),
    ],
)
def test_bad_mixes_are_refused(mix: dict, said: str):
    with pytest.raises(UserError, match=said):
        check_mix(mix)


def test_stream_follows_its_generator_and_stays_in_its_split():
    first = list(islice(stream("train", rng=random.Random(5), mix=MIX), 50))
    again = list(islice(stream("train", rng=random.Random(5), mix=MIX), 50))
    assert first == again
    assert {split_of(problem.problem) for problem in first} == {"train"}


# ---- the careless solver


def test_a_solver_who_never_slips_is_the_solver():
    rng = random.Random(0)
    for problem in load("train", num=200, seed=0, mix=MIX):
        assert careless_solution(problem.problem, slip=0.0, rng=rng) == solution(problem.problem)


@pytest.mark.parametrize(
    ("problem", "trace"),
    [
        ("47+85=", "7+5=12,4+8=12#### 122"),
        ("85-47=", "5-7=-2+10=8,8-4=4#### 48"),
        ("47*6=", "7*6=42,4*6=24#### 242"),
        ("7+8-5+9=", "7+8=15,15+5=20,20+9=29#### 29"),
        ("20+30=", "0+0=0,2+3=5#### 50"),
    ],
)
def test_a_solver_who_always_slips(problem: str, trace: str):
    assert careless_solution(problem, slip=0.999999, rng=random.Random(0)) == trace


def test_slips_come_as_often_as_asked():
    rng = random.Random(0)
    forgotten = sum(careless_solution("47+85=", slip=0.3, rng=rng).endswith(" 122") for _ in range(4000))
    assert abs(forgotten / 4000 - 0.3) < 0.03  # four standard errors


@pytest.mark.parametrize(("digits", "numbers"), [(1, range(10)), (2, range(10, 100))])
def test_an_operand_is_any_number_of_so_many_digits(digits: int, numbers: range):
    rng = random.Random(0)
    drawn = (draw(rng, split="train", domain="multiplication", difficulty=digits) for _ in range(3000))
    assert {int(each.problem.partition("*")[0]) for each in drawn} == set(numbers)
