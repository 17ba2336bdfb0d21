import random
from itertools import islice, pairwise

import pytest

from opd.config.worlds import DIFFICULTIES
from opd.data.puzzles import careless_solution, example, hinted, solution
from opd.data.tasks import load, stream
from opd.recipes.tokenizer import CONTROL, TURNS, build_tokenizer

MIX = {"sort": [5, 8], "ascend": [8, 14]}


def by_python(problem: str) -> str:
    """The answer in another way: sorted digits; letters that no earlier letter exceeds."""
    domain, state = problem.split()
    if domain == "sort":
        return "".join(sorted(state))
    return "".join(letter for place, letter in enumerate(state) if letter == max(state[: place + 1]))


def parts(trace: str) -> tuple[list[str], str]:
    steps, mark, answer = trace.partition("#### ")
    assert mark
    return steps.split("\n")[:-1], answer


@pytest.mark.parametrize(
    ("problem", "trace"),
    [
        ("sort 4321\n", "1432\n1243\n1234\n#### 1234"),
        ("sort 12\n", "#### 12"),
        ("ascend hkcbamt\n", "hkmt\n#### hkmt"),
        ("ascend dabegf\n", "degf\ndeg\n#### deg"),
    ],
)
def test_trace(problem: str, trace: str):
    assert solution(problem) == trace


@pytest.mark.parametrize("domain", ["sort", "ascend"])
def test_every_order_of_steps_gives_the_answer(domain: str):
    rng = random.Random(0)
    for difficulty in DIFFICULTIES[domain]:
        for problem in islice(stream("train", rng=rng, mix={domain: [difficulty]}), 40):
            text = problem.problem
            assert problem.answer == by_python(text) and len(text.split()[1]) == difficulty
            steps, answer = parts(careless_solution(text, slip=0.0, rng=rng))
            assert answer == problem.answer
            for before, after in pairwise([text.split()[1], *steps]):
                if domain == "sort":
                    changed = [place for place in range(difficulty) if before[place] != after[place]]
                    assert len(changed) == 2 and changed[1] == changed[0] + 1
                    assert before[changed[0]] > before[changed[1]]
                else:
                    place = next(p for p in range(len(before)) if before[:p] + before[p + 1 :] == after)
                    assert place and before[place - 1] > before[place]
            big_steps, answer = parts(solution(text))
            assert answer == problem.answer and len(big_steps) <= min(len(steps), difficulty - 1)


def test_steps_come_in_many_orders():
    rng = random.Random(0)
    assert len({careless_solution("sort 54321\n", slip=0.0, rng=rng) for _ in range(50)}) > 40


def test_a_solver_who_slips_goes_on_from_what_stands_there():
    rng, wrong = random.Random(0), 0
    for problem in load("train", num=400, seed=0, mix=MIX):
        steps, answer = parts(careless_solution(problem.problem, slip=0.1, rng=rng))
        assert answer == (steps or [problem.problem.split()[1]])[-1]
        assert all(one <= two for one, two in pairwise(answer)) or len(steps) == 60
        wrong += answer != problem.answer
    assert 0.2 < wrong / 400 < 0.7


@pytest.mark.parametrize("text", ["", "sort\n", "sort 5a\n", "ascend 12\n", "order 12\n", "47+85="])
def test_what_is_no_puzzle_has_no_solution(text: str):
    with pytest.raises(ValueError, match="not a problem"):
        solution(text)


def test_a_hint_stands_after_the_problem():
    rng = random.Random(0)
    assert hinted("sort 3412\n", "solution", rng) == "sort 3412\nhint 1342 1234\n"
    # 3142 is the only first step, and then there are two
    assert {hinted("sort 3412\n", "half", rng) for _ in range(20)} == {
        "sort 3412\nhint 1342\n",
        "sort 3412\nhint 3124\n",
    }


def test_an_example_with_a_hint_follows_it():
    rng, kinds = random.Random(0), dict.fromkeys(("half", "solution"), 0)
    for problem in load("train", num=600, seed=0, mix=MIX):
        prompt, trace = example(problem.problem, slip=0.0, hints=0.5, rng=rng)
        hint = prompt.removeprefix(problem.problem).removeprefix("hint ").strip()
        if not hint:
            continue
        steps, answer = parts(trace)
        assert prompt.startswith(problem.problem) and answer == problem.answer
        if hint.split() == steps:
            assert trace == solution(problem.problem)
            kinds["solution"] += 1
        else:  # a state on the way to the answer
            assert set(hint) >= set(answer) and hint not in steps
            kinds["half"] += 1
    assert all(110 < count < 190 for count in kinds.values())


def test_train_and_test_share_no_puzzle():
    test = {problem.problem for problem in load("test", num=300, seed=0, mix=MIX)}
    train = {problem.problem for problem in load("train", num=2000, seed=0, mix=MIX)}
    assert len(test) == 300 and not test & train


def test_every_text_survives_encoding_one_token_a_character():
    tokenizer, rng = build_tokenizer("puzzles"), random.Random(0)
    for problem in islice(stream("train", rng=rng, mix=MIX), 100):
        text = "".join(example(problem.problem, slip=0.2, hints=0.5, rng=rng))
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text and len(ids) == len(text) - len("#### ") + 1
    assert len(tokenizer.encode("".join((*CONTROL, *TURNS)))) == len(CONTROL) + len(TURNS)
