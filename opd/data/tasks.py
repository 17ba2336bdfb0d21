"""Generated problems of every world: finite sets, and endless streams. A world is a module with the functions of
`World`.
"""

import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol, cast, runtime_checkable

from opd.config.worlds import Domain, check_mix, world_of
from opd.data import arithmetic, puzzles
from opd.data.problem import Problem, Split
from opd.errors import UserError

# A cell counts as exhausted after this many draws in a row that were all seen before.
_MISSES = 2000


@runtime_checkable
class World(Protocol):
    """What a world's module offers."""

    def draw(self, rng: random.Random, *, split: Split, domain: Domain, difficulty: int) -> Problem:
        """One problem of one domain and difficulty that belongs to `split`."""
        ...

    def solution(self, problem: str) -> str:
        """A right trace for a problem's text, ending with `#### <answer>`."""
        ...

    def example(self, problem: str, *, slip: float, hints: float, rng: random.Random) -> tuple[str, str]:
        """(prompt, trace) to learn from: of a solver who makes mistakes with probability `slip`; a share `hints` of
        prompts has a hint.
        """
        ...


_WORLDS: Mapping[str, World] = {"arithmetic": cast(World, arithmetic), "puzzles": cast(World, puzzles)}


def world(mix: Mapping[Domain, Sequence[int]]) -> World:
    """The world of a mix."""
    return _WORLDS[world_of(mix)]


def load(split: Split, *, num: int, seed: int, mix: Mapping[Domain, Sequence[int]]) -> list[Problem]:
    """`num` different problems of one split, spread evenly over the (domain, difficulty) cells of `mix`.

    See `opd.config.worlds` for what a difficulty is. The share of an exhausted cell goes to the others.

    Raises:
        UserError: where `mix` is invalid, or has fewer than `num` different problems.
    """
    cells, draw = check_mix(mix), world(mix).draw
    rng = random.Random(f"{split}-{seed}")
    problems: dict[str, Problem] = {}
    while len(problems) < num and cells:
        for domain, difficulty in tuple(cells):
            for _ in range(_MISSES):
                problem = draw(rng, split=split, domain=domain, difficulty=difficulty)
                if problem.id not in problems:
                    problems[problem.id] = problem
                    break
            else:
                cells.remove((domain, difficulty))
            if len(problems) == num:
                break
    if len(problems) < num:
        described = "; ".join(f"{domain} {', '.join(map(str, sizes))}" for domain, sizes in mix.items())
        raise UserError(
            f"{world_of(mix)}: {num} different {split} problems were requested, but the mix {described} has only"
            f" {len(problems)}; ask for fewer, or add difficulties"
        )
    return list(problems.values())


def stream(split: Split, *, rng: random.Random, mix: Mapping[Domain, Sequence[int]]) -> Iterator[Problem]:
    """Endless draws with replacement: a domain, then a difficulty, then a problem, each uniformly."""
    by_domain: dict[Domain, list[int]] = {}
    for domain, difficulty in check_mix(mix):
        by_domain.setdefault(domain, []).append(difficulty)
    domains, draw = list(by_domain), world(mix).draw
    while True:
        domain = rng.choice(domains)
        yield draw(rng, split=split, domain=domain, difficulty=rng.choice(by_domain[domain]))
