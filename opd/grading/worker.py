r"""Judge answers for `opd.grading.grading` in a separate process: JSON lines in, JSON lines out.

Run as a file, it imports math-verify and nothing of opd, torch or transformers, except what another grader imports.
It protects its parent: the kernel ends it by SIGALRM when an answer exceeds its time limit, whatever the interpreter is
doing; its address space is limited; it ends with its standard input, so it does not outlive its parent; and it returns
only a verdict and strings.
"""

import importlib
import json
import logging
import os
import re
import resource
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import lru_cache
from types import SimpleNamespace
from typing import Any

MEMORY_LIMIT = 1 << 30  # bytes of address space; about a third is taken once sympy is imported

# Shares of the larger, up to which two values are equal: where one is a decimal, which may be rounded, and where not.
DECIMALS_DIFFER, VALUES_DIFFER = 1e-3, 1e-20
DIGITS = 40


def judge(gold: dict[str, Any], answer: dict[str, Any]) -> dict[str, Any]:
    """The verdict on one answer: {"equal": bool, "answer": its text, or null where prose has none}."""
    parsed = read(answer["text"], answer["bare"])
    if not parsed:
        return {"equal": False, "answer": answer["text"] if answer["bare"] else None}
    text = answer["text"] if answer["bare"] else next((part for part in parsed if isinstance(part, str)), None)
    golds = read(gold["text"], gold["bare"])
    equal = verified(golds, parsed) or any(verified(*pair) for pair in complex_readings(golds, parsed))
    return {"equal": equal, "answer": text}


def verified(golds: Sequence[Any], parsed: Sequence[Any]) -> bool:
    """math-verify's verdict, its numbers compared by `numbers_equal`."""
    from math_verify import grader

    if grader.sympy_numeric_eq is not numbers_equal:
        global _numeric_eq
        _numeric_eq, grader.sympy_numeric_eq = grader.sympy_numeric_eq, numbers_equal
    return grader.verify(list(golds), list(parsed), timeout_seconds=None)


_numeric_eq: Callable[..., bool]


def numbers_equal(a: Any, b: Any, float_rounding: int, numeric_precision: int) -> bool:
    """math-verify's comparison of values, and then that they are alike for their size.

    It rounds to six decimals and takes what is tiny for 0, terms within an expression too, so that 2^-61 equals 2^-60
    and 25! / 24! equals 25! / 23!.
    """
    if not _numeric_eq(a, b, float_rounding, numeric_precision):
        return False
    if hasattr(a, "shape"):  # a matrix: its elements have been compared here
        return True
    if getattr(a - b, "free_symbols", None):
        return bool((a - b).evalf(n=numeric_precision) == 0)  # else it is left to simplification
    from math_verify.grader import get_pct_val
    from sympy import Float

    close = DECIMALS_DIFFER if a.has(Float) or b.has(Float) else VALUES_DIFFER
    percent = get_pct_val(a, a), get_pct_val(b, b)
    return any(_close(x.doit(), y.doit(), close) for x, y in ((a, b), percent))


def _close(a: Any, b: Any, share: float) -> bool:
    if a == b:
        return True
    one, other = a.evalf(DIGITS), b.evalf(DIGITS)
    return bool(abs(one - other) <= share * max(abs(one), abs(other)))


def complex_readings(golds: Sequence[Any], parsed: Sequence[Any]) -> list[tuple[list[Any], list[Any]]]:
    """Both with the letter i as the imaginary unit, where nothing else in them is unknown."""
    from sympy import Basic, I

    sides = [[part for part in side if isinstance(part, Basic)] for side in (golds, parsed)]
    unknown = {symbol for side in sides for part in side for symbol in part.free_symbols}
    if not all(sides) or {str(symbol) for symbol in unknown} != {"i"}:
        return []
    read = [[part.subs(dict.fromkeys(unknown, I)) for part in side] for side in sides]
    return [(read[0], read[1])]


def judged_by(request: dict[str, Any]) -> dict[str, Any]:
    """The verdict of the grader that a request names: {"score", "correct", "answer", "reason"}."""
    grader = imported(request)
    problem = SimpleNamespace(problem=request["problem"], answer=request["answer"])
    try:
        grade = grader(problem, request["response"], **request["knobs"])
        answer = None if grade.answer is None else str(grade.answer)
        return {
            "score": float(grade.score),
            "correct": bool(grade.correct),
            "answer": answer,
            "reason": str(grade.reason),
        }
    except Exception:  # a response may be made to break it
        return {"score": 0.0, "correct": False, "answer": None, "reason": "error"}


def imported(request: dict[str, Any]) -> Callable[..., Any]:
    """The grader that a request names."""
    sys.path += [place for place in request["path"] if place not in sys.path]  # last: nothing there shadows a library
    module, _, name = request["grader"].rpartition(".")
    return getattr(importlib.import_module(module), name)


@lru_cache(maxsize=512)
def read(text: str, bare: bool) -> tuple[Any, ...]:
    r"""Parse `text` by math-verify into expressions and, as its fallback, strings.

    Prose goes through its own extraction; a bare answer is passed as `\boxed{text}`, in each of its `readings`.
    """
    from math_verify import LatexExtractionConfig, parse

    if not bare:
        return tuple(parse(text, parsing_timeout=None))  # pyright: ignore[reportArgumentType]
    boxed = [LatexExtractionConfig(boxed_match_priority=0, try_extract_without_anchor=False)]
    parsed = [
        part
        for reading in readings(text)
        for part in parse(rf"\boxed{{{reading}}}", boxed, parsing_timeout=None)  # pyright: ignore[reportArgumentType]
    ]
    return tuple(symbol_first(part) for part in parsed)


def readings(text: str) -> list[str]:
    """The possible meanings of a bare answer, as LaTeX."""
    for found, latex in _UNICODE:
        text = found.sub(latex, text)
    text = _PERCENT.sub(r"\\%", text.replace("**", "^"))
    meanings = [text]
    if text.endswith(r"\%"):
        meanings += [rf"\frac{{{text[:-2]}}}{{100}}", text[:-2]]
    if _MODULO.search(text) and (equal := _EQUALS.split(_REMAINDER.sub("", text)))[1:]:
        meanings = [equal[-1]]  # 17 \bmod 5 = 2
    if mixed := _MIXED.fullmatch(text):
        meanings = [r"{}({}+\frac{{{}}}{{{}}})".format(*mixed.groups())]
    exact, about, _ = text.partition(r"\approx")
    if about and not _NAME.fullmatch(exact):
        meanings.append(exact)
    solutions = _AND.split(text)
    if len(solutions) > 1 and all("," in each and "=" in each for each in solutions):
        meanings.append(";".join(solutions))  # x = 1, y = 2 and x = 3, y = 4: two pairs
    if _DECIMAL_COMMA.fullmatch(text):
        meanings.append(text.replace(",", "."))
    return meanings


def symbol_first(expression: Any) -> Any:
    """`2 = x` as `x = 2`: math-verify reads only the latter as the value of x."""
    from sympy import Eq, Symbol

    if isinstance(expression, Eq) and isinstance(expression.rhs, Symbol) and not expression.lhs.free_symbols:
        return Eq(expression.rhs, expression.lhs, evaluate=False)
    return expression


_PERCENT = re.compile(r"\s*(?:(?<!\\)%|\\%|\\text\{\s*(?:percent(?:age)?|pct)\s*\}|\b(?:percent(?:age)?|pct))$")
_NAME = re.compile(r"\s*\\?[A-Za-z](?:_\w|_\{\w+\})?\s*")
_AND = re.compile(r"(?:\\q?quad)?\s*(?:\\text\{\s*(?:and|or)\s*\}|\b(?:and|or)\b)\s*(?:\\q?quad)?")
_UNICODE = (
    (re.compile(r"\s*°"), r"^\\circ"),
    (
        re.compile(r"√\s*(?:\(([^()]*)\)|\{([^{}]*)\}|([0-9.]+|[A-Za-z]))"),
        lambda found: rf"\sqrt{{{found[found.lastindex]}}}",
    ),
    (re.compile(r"∅|\\varnothing(?![A-Za-z])"), r"\\emptyset"),
    (re.compile(r"[€£¥]\s*"), ""),
)
_MODULO = re.compile(r"\\(?:b|p)?mod(?![A-Za-z])")
_EQUALS = re.compile(r"=|\\equiv(?![A-Za-z])")
_REMAINDER = re.compile(r"\s*\(?\\pmod\s*(?:\{[^{}]*\}|\w+)\)?\s*$")
_MIXED = re.compile(r"([-+]?)\s*([0-9]+)\s+([0-9]+)\s*/\s*([0-9]+)")
_DECIMAL_COMMA = re.compile(r"[-+]?\d+,\d+")


def main() -> None:
    """Serve requests {"gold", "answer", "timeout"}, or those of `judged_by`, until standard input ends.

    One of `judged_by` without a timeout only imports its grader.
    """
    replies = os.fdopen(os.dup(1), "w")
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)  # prints of libraries are not replies
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)  # meant for the run, which saves first and then closes our input
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGALRM})
    with suppress(ValueError, OSError):  # a platform without the limit keeps the time limit
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT, MEMORY_LIMIT))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    logging.disable(logging.CRITICAL)
    warm = {"text": r"\frac{1}{2} + x", "bare": True}, {"text": "the answer is $x + 0.5$", "bare": False}
    judge(*warm)  # the parsers' tables are built here, outside any answer's time

    def reply(message: dict[str, Any]) -> None:
        print(json.dumps(message), file=replies, flush=True)

    reply({"ready": True})
    os.dup2(nowhere, 2)
    for line in sys.stdin:
        request = json.loads(line)
        if "timeout" not in request:
            imported(request)  # as the parsers above, outside any answer's time
            reply({"ready": True})
            continue
        signal.setitimer(signal.ITIMER_REAL, request["timeout"])
        verdict = judged_by(request) if "grader" in request else judge(request["gold"], request["answer"])
        signal.setitimer(signal.ITIMER_REAL, 0)
        # math-verify returns "not equal" when it runs out of memory: end before that can happen.
        last = peak_memory() > MEMORY_LIMIT // 2
        reply(verdict | {"last": last})
        if last:
            return


def peak_memory() -> int:
    """The peak memory of this process, in bytes."""
    try:  # not `ru_maxrss`: on Linux it starts at the peak of the process that started this one
        with open("/proc/self/status", encoding="ascii") as status:
            return next(int(line.split()[1]) << 10 for line in status if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << (0 if sys.platform == "darwin" else 10)


if __name__ == "__main__":
    main()
