"""Which arms were asked other questions than the rest, so that their scores do not compare."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from analysis.arms import Arm
from analysis.comparison import ProblemScores

Asked = dict[str, tuple[tuple[str, ...], int]]  # benchmark → its problems, and k


def marked(arms: Sequence[Arm], scores: ProblemScores) -> list[Arm]:
    """The arms; those asked otherwise than the baseline have `asked`, what differs.

    Without a baseline what most arms were asked takes its place.
    """
    questions = {arm.id: scores.asked(arm.used) for arm in arms if arm.used}
    usual = _usual(arms, questions)
    if usual is None:
        return list(arms)
    found = []
    for arm in arms:
        differs = _difference(questions[arm.id], usual) if arm.id in questions else ""
        found.append(replace(arm, asked=differs))
    return found


def _usual(arms: Sequence[Arm], questions: dict[str, Asked | None]) -> Asked | None:
    """What the baseline was asked, or else most arms, those that count before others."""
    for some in ([arm for arm in arms if arm.role == "baseline"], [arm for arm in arms if arm.counted], arms):
        every = [own for arm in some if (own := questions.get(arm.id))]
        if every:
            keys = [repr(own) for own in every]
            return every[keys.index(Counter(keys).most_common(1)[0][0])]
    return None


def _difference(own: Asked | None, usual: Asked) -> str:
    if own is None:
        return "its runs were not asked alike"
    parts = []
    if extra := sorted(own.keys() - usual.keys()):
        parts.append(f"on {', '.join(extra)}")
    if missing := sorted(usual.keys() - own.keys()):
        parts.append(f"not on {', '.join(missing)}")
    for name in sorted(own.keys() & usual.keys()):
        (problems, k), (usual_problems, usual_k) = own[name], usual[name]
        if problems != usual_problems:
            other = " others" if len(problems) == len(usual_problems) else ""
            parts.append(f"{name}: {len(problems)} problems{other or f', not {len(usual_problems)}'}")
        if k != usual_k:
            parts.append(f"{name}: {k} answers each, not {usual_k}")
    return "; ".join(parts)
