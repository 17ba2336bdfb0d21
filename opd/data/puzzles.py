"""The small world: puzzles solved in many small steps, where often several steps are right.

    sort 52918         puts digits in order by swapping neighbours that are out of order
    25918              ← the state after each step, a line each
    …
    #### 12589

    ascend hkcba       removes letters that follow a later letter, until the rest is in order
    hkba
    hka
    hk
    #### hk

Every order of right steps leads to the same answer. A careless solver sometimes makes a wrong step or a mistake in
copying, and continues from what it wrote. A hint stands on a line after the problem:

    hint 25198         a state half-way, from which the trace then continues
    hint 15298 12598   the reference solution: each step moves the least remaining digit, or removes a run of letters

Problems come from an explicit generator; those for evaluation are held out by a stable hash of the problem, never by
seed.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import get_args

from opd.config.worlds import Domain, Hint
from opd.data.problem import ANSWER_MARK, Problem, Split, split_of

# The most steps of a trace: a careless solver may go round in circles.
_MOST_STEPS = 60

# The share of slips that are wrong steps; the others are mistakes in copying.
_WRONG_STEPS = 0.4


@dataclass(frozen=True)
class _Puzzle:
    """`symbols`, in order; `step` resolves the pair of neighbours at a place, or any other pair; `big_step` all that a
    place asks for.
    """

    symbols: str
    step: Callable[[str, int], str]
    big_step: Callable[[str, int], str]


def _swap(state: str, place: int) -> str:
    return state[:place] + state[place + 1] + state[place] + state[place + 2 :]


def _move_least(state: str, place: int) -> str:
    least = min(state[place:])
    return state[:place] + least + state[place:].replace(least, "", 1)


def _remove_second(state: str, place: int) -> str:
    return state[: place + 1] + state[place + 2 :]


def _remove_run(state: str, place: int) -> str:
    return state[: place + 1] + state[place + 1 :].lstrip(LETTERS[: LETTERS.index(state[place])])


DIGITS, LETTERS = "0123456789", "abcdefghijklmnopqrst"
_PUZZLES = {
    "sort": _Puzzle(DIGITS, _swap, _move_least),
    "ascend": _Puzzle(LETTERS, _remove_second, _remove_run),
}

HINTS: Sequence[Hint] = get_args(Hint)


def draw(rng: random.Random, *, split: Split, domain: Domain, difficulty: int) -> Problem:
    """One problem with `difficulty` different symbols that belongs to `split`."""
    while True:
        state = "".join(rng.sample(_PUZZLES[domain].symbols, difficulty))
        problem = f"{domain} {state}\n"
        if split_of(problem) == split:
            answer = _big_steps(problem)[-1]
            return Problem(id=f"{domain}-{difficulty}-{state}", problem=problem, answer=answer, domain=domain)


def solution(problem: str) -> str:
    """The reference solution: the trace in big steps, with the answer.

    Raises:
        ValueError: where the text is no problem of this world.
    """
    return _trace(_big_steps(problem))


def careless_solution(problem: str, *, slip: float, rng: random.Random) -> str:
    """A trace with steps in random order, each of them a slip with probability `slip`."""
    return _trace(_solve(problem, slip, rng))


def hinted(problem: str, hint: Hint, rng: random.Random) -> str:
    """The problem with a hint after it: a state half-way of a random right trace, or the reference solution."""
    states = _solve(problem, 0.0, rng)
    shown = states[len(states) // 2] if hint == "half" else " ".join(_big_steps(problem)[1:])
    return f"{problem}hint {shown}\n"


def example(problem: str, *, slip: float, hints: float, rng: random.Random) -> tuple[str, str]:
    """(prompt, trace) to learn from: a careless trace, or for a share `hints` of prompts what a hint asks for."""
    if rng.random() >= hints:
        return problem, careless_solution(problem, slip=slip, rng=rng)
    hint = rng.choice(HINTS)
    prompt = hinted(problem, hint, rng)
    if hint != "half":
        return prompt, solution(problem)
    domain, half = problem.split()[0], prompt.split()[-1]
    return prompt, careless_solution(f"{domain} {half}\n", slip=slip, rng=rng)


def _big_steps(problem: str) -> list[str]:
    puzzle, state = _read(problem)
    states = [state]
    place = 0
    while place < len(state):  # a step may shorten it
        state = puzzle.big_step(state, place)
        if state != states[-1]:
            states.append(state)
        place += 1
    return states


def _read(problem: str) -> tuple[_Puzzle, str]:
    domain, _, state = problem.removesuffix("\n").partition(" ")
    puzzle = _PUZZLES.get(domain)
    if puzzle is None or not state or set(state) - set(puzzle.symbols):
        raise ValueError(f"{problem!r} is not a problem of the small world")
    return puzzle, state


def _solve(problem: str, slip: float, rng: random.Random) -> list[str]:
    """The states from the problem's own to the answer, by random right steps but for slips."""
    puzzle, state = _read(problem)
    states = [state]
    while (places := _descents(state)) and len(states) <= _MOST_STEPS:
        if rng.random() >= slip:
            state = puzzle.step(state, rng.choice(places))
        elif rng.random() < _WRONG_STEPS:
            state = puzzle.step(state, rng.randrange(len(state) - 1))
        else:
            state = _miscopied(state, puzzle.symbols, rng)
        states.append(state)
    return states


def _descents(state: str) -> list[int]:
    """Where a symbol is later than its right neighbour: a step there is right."""
    return [place for place in range(len(state) - 1) if state[place] > state[place + 1]]


def _miscopied(state: str, symbols: str, rng: random.Random) -> str:
    """The state as it is, or with a symbol dropped, doubled or changed."""
    place = rng.randrange(len(state))
    before, symbol, after = state[:place], state[place], state[place + 1 :]
    return before + rng.choice([symbol, "", 2 * symbol, rng.choice(symbols)]) + after


def _trace(states: Sequence[str]) -> str:
    return "".join(f"{state}\n" for state in states[1:]) + ANSWER_MARK + states[-1]
