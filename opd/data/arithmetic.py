"""The tiny world: worked arithmetic with a scratchpad and one checkable answer.

    47+85=  →  7+5=12,4+8+1=13#### 132

Every step of a trace is local (one digit fact, one carry), so that small models can learn it. Problems are fresh draws
from an explicit generator; those meant for evaluation are held out by a stable hash of the operands, never by seed.
"""

import random
from collections.abc import Callable

from opd.config.worlds import Domain
from opd.data.problem import ANSWER_MARK, Problem, Split, split_of as split_of_key


def draw(rng: random.Random, *, split: Split, domain: Domain, difficulty: int) -> Problem:
    """One problem of one cell, uniformly over the operands that belong to `split`."""
    while True:
        expression = _EXPRESSIONS[domain](rng, difficulty)
        if split_of(expression) == split:
            return Problem(
                id=f"{domain}-{difficulty}-{expression}",
                problem=f"{expression}=",
                answer=solution(expression).rpartition(ANSWER_MARK)[2],
                domain=domain,
            )


def solution(problem: str) -> str:
    """The solver's trace for a problem's text: scratchpad, then `#### <answer>`.

    Raises:
        ValueError: where the text is not a problem of this world.
    """
    return _trace(problem, lambda: False)


def careless_solution(problem: str, *, slip: float, rng: random.Random) -> str:
    """As `solution`, by a solver that with probability `slip` each forgets a carry or mistakes a minus for a plus.

    After a mistake it continues from what it wrote, so that the trace stays consistent.
    """
    return _trace(problem, lambda: rng.random() < slip)


def example(problem: str, *, slip: float, hints: float, rng: random.Random) -> tuple[str, str]:
    """(prompt, trace) to learn from. This world has no hints: `hints` must be 0."""
    assert not hints
    return problem, careless_solution(problem, slip=slip, rng=rng)


def _trace(problem: str, slips: "Slips") -> str:
    terms, signs = _parse(problem)
    steps, answer = _chain(terms, signs, slips) if len(terms) > 2 else _SOLVERS[signs](terms[0], terms[1], slips)
    return f"{','.join(steps)}{ANSWER_MARK}{answer}"


def split_of(expression: str) -> Split:
    """The split of an expression, by SHA-256 of its operands, sorted for sums and products."""
    terms, signs = _parse(expression)
    if signs in ("+", "*"):
        terms = sorted(terms)
    return split_of_key(f"{signs} {' '.join(terms)}")


# ---- problems


def _operand(rng: random.Random, digits: int) -> int:
    return rng.randrange(10 ** (digits - 1) if digits > 1 else 0, 10**digits)


def _sum(rng: random.Random, digits: int) -> str:
    return f"{_operand(rng, digits)}+{_operand(rng, digits)}"


def _difference(rng: random.Random, digits: int) -> str:
    pair = _operand(rng, digits), _operand(rng, digits)
    return f"{max(pair)}-{min(pair)}"


def _product(rng: random.Random, digits: int) -> str:
    return f"{_operand(rng, digits)}*{rng.randrange(2, 10)}"


def _left_to_right(rng: random.Random, terms: int) -> str:
    """Single digits added and subtracted, never below zero or above 20 on the way."""
    total = rng.randrange(10)
    expression = str(total)
    for _ in range(terms - 1):
        term = rng.randrange(1, 10)
        sign = rng.choice([sign for sign in "+-" if 0 <= total + int(f"{sign}{term}") <= 20])
        total += term if sign == "+" else -term
        expression += f"{sign}{term}"
    return expression


_EXPRESSIONS = {
    "addition": _sum,
    "subtraction": _difference,
    "multiplication": _product,
    "chain": _left_to_right,
}


# ---- traces

# Whether the solver makes a mistake here; called only where it can make one.
Slips = Callable[[], bool]


def _parse(expression: str) -> tuple[list[str], str]:
    """`47+85=` → (["47", "85"], "+")."""
    body = expression.removesuffix("=")
    signs = "".join(character for character in body if character in "+-*")
    terms = body.replace("-", "+").replace("*", "+").split("+")
    if not signs or not all(term.isascii() and term.isdigit() for term in terms) or ("*" in signs and signs != "*"):
        raise ValueError(f"{expression!r} is not a problem of the arithmetic world")
    return terms, signs


def _add(left: str, right: str, slips: Slips) -> tuple[list[str], str]:
    """Digit by digit from the right, `+1` where a carry comes in."""
    steps, digits, carry = [], "", 0
    for a, b in zip(reversed(left), reversed(right), strict=True):
        carry = 0 if carry and slips() else carry
        total = int(a) + int(b) + carry
        steps.append(f"{a}+{b}{'+1' if carry else ''}={total}")
        digits, carry = f"{total % 10}{digits}", total // 10
    return steps, f"{carry or ''}{digits}"


def _subtract(left: str, right: str, slips: Slips) -> tuple[list[str], str]:
    """Digit by digit from the right; a result below zero borrows ten, and the next digit then gives `-1` for it."""
    steps, digits, borrow = [], "", 0
    for a, b in zip(reversed(left), reversed(right), strict=True):
        borrow = 0 if borrow and slips() else borrow
        rest = int(a) - int(b) - borrow
        steps.append(f"{a}-{b}{'-1' if borrow else ''}={rest}" + (f"+10={rest + 10}" if rest < 0 else ""))
        digits, borrow = f"{rest % 10}{digits}", int(rest < 0)
    return steps, digits.lstrip("0") or "0"


def _multiply(left: str, right: str, slips: Slips) -> tuple[list[str], str]:
    """Digit by digit from the right, `+c` where a carry comes in."""
    steps, digits, carry = [], "", 0
    for a in reversed(left):
        carry = 0 if carry and slips() else carry
        product = int(a) * int(right)
        total = product + carry
        steps.append(f"{a}*{right}={product}" + (f"+{carry}={total}" if carry else ""))
        digits, carry = f"{total % 10}{digits}", total // 10
    return steps, f"{carry or ''}{digits}"


def _chain(terms: list[str], signs: str, slips: Slips) -> tuple[list[str], str]:
    """Term by term from the left."""
    steps, total = [], int(terms[0])
    for sign, term in zip(signs, terms[1:], strict=True):
        taken = "+" if sign == "-" and slips() else sign
        before, total = total, total + int(f"{taken}{term}")
        steps.append(f"{before}{taken}{term}={total}")
    return steps, str(total)


_SOLVERS = {"+": _add, "-": _subtract, "*": _multiply}
