"""The headline of the report: how far the student improved, and what ran."""

import math
from dataclasses import dataclass

from analysis.arms import Arm
from analysis.evaluation import AVERAGE
from analysis.results import Results, rows_of
from analysis.wandb_import import EXPORTED


@dataclass(frozen=True)
class Tile:
    """One number with its label and a note."""

    label: str
    value: str
    note: str


@dataclass(frozen=True)
class Headline:
    """The title, a line on what ran, the key numbers, and the progress bar."""

    title: str
    ran: str
    tiles: list[Tile]
    progress: "Progress | None" = None


@dataclass(frozen=True)
class Progress:
    """Scores in percent: before training, after it, and the teacher's."""

    before: float
    after: float
    teacher: float | None


@dataclass(frozen=True)
class _Score:
    value: float
    low: float
    high: float


def headline(results: Results) -> Headline:
    """About the baseline; without one, about the only student, or how far apart the students are."""
    scores = _last_scores(results)
    scored = [arm for arm in results.arms if arm.id in scores]
    students = [arm for arm in scored if arm.role != "teacher"]
    if not students:
        return Headline("No student has been evaluated yet", " · ".join(_runs(results)), [])
    finished = [arm for arm in students if arm.counted] or students
    if results.baseline is None and finished[1:]:
        return _range(results, [arm for arm in finished if not arm.asked] or finished, scores)
    student = finished[0]
    benchmarks = _benchmarks(results, student)
    alike = [arm for arm in scored if arm.role == "teacher" and _benchmarks(results, arm) == benchmarks]
    teacher = max(alike, key=lambda arm: scores[arm.id].value, default=None)
    return Headline(
        _title(results, student, scores[student.id]),
        " · ".join([*_runs(results), _problems(results, student)]),
        _tiles(results, student, scores[student.id], teacher, scores[teacher.id] if teacher else None),
        _progress(results, student, scores, teacher),
    )


def _range(results: Results, students: list[Arm], scores: dict[str, "_Score"]) -> Headline:
    """About several students of which none is the baseline. The highest score is no estimate: it is the best of many,
    chosen on the problems that it is measured on.
    """
    ordered = sorted(students, key=lambda arm: scores[arm.id].value)
    low, high = (_percent(scores[arm.id].value) for arm in (ordered[0], ordered[-1]))
    mean, number = results.label("mean"), len(ordered)
    tiles = [
        Tile("Lowest", low, f"{mean} of {ordered[0].label}"),
        Tile("Highest", high, f"{mean} of {ordered[-1].label}: the best of {number} on these problems, so optimistic"),
    ]
    so_far = "" if all(arm.counted for arm in ordered) else " so far"
    scores_to = f"{number} configs score {low} to {high}{so_far}" if low != high else f"{number} configs score {low}"
    return Headline(scores_to, " · ".join([*_runs(results), _problems(results, ordered[0])]), tiles)


def _progress(results: Results, student: Arm, scores: dict[str, "_Score"], teacher: Arm | None) -> Progress | None:
    if student.id not in results.before:
        return None
    goal = scores[teacher.id].value if teacher else None
    return Progress(100 * results.before[student.id], scores[student.id].value, goal)


def _last_scores(results: Results) -> dict[str, _Score]:
    """Arm → mean@k at its last step, averaged over benchmarks, in percent."""
    return {
        arm: _Score(100 * row["value"], 100 * row["low"], 100 * row["high"])
        for (arm, benchmark), rows in results.estimated.items()
        for row in rows
        if (benchmark, row["score"], row["which"]) == (AVERAGE, "mean", "last") and not math.isnan(row["value"])
    }


def _title(results: Results, student: Arm, score: _Score) -> str:
    if student.id not in results.before:
        return f"{student.label} scores {_percent(score.value)}"
    start, end = round(100 * results.before[student.id], 1), round(score.value, 1)
    so_far = "" if student.counted else " so far"
    if start == end:
        return f"The student stayed at {_percent(end)}{so_far}"
    return f"The student {'climbed' if end > start else 'fell'} from {_percent(start)} to {_percent(end)}{so_far}"


def _tiles(
    results: Results, student: Arm, score: _Score, teacher: Arm | None, teachers_score: _Score | None
) -> list[Tile]:
    mean = results.label("mean")
    tiles = []
    if student.id in results.before:
        tiles.append(Tile("Before", _percent(100 * results.before[student.id]), f"{mean} before training"))
    interval = "" if math.isnan(score.low) else f", 95 % interval {score.low:.1f} to {score.high:.1f}"
    seeds = f", {len(student.used)} seeds" if len(student.used) > 1 else ""
    after = "Distilled" if student.counted else "So far"
    tiles.append(Tile(after, _percent(score.value), f"{mean} of {student.label}{seeds}{interval}"))
    if teacher and teachers_score:
        share = (
            f", of which the student reaches {100 * score.value / teachers_score.value:.0f} %"
            if teachers_score.value
            else ""
        )
        tiles.append(Tile("Teacher", _percent(teachers_score.value), f"{mean} of {teacher.label}{share}"))
    return tiles


def _runs(results: Results) -> list[str]:
    runs = rows_of(results.records.runs)
    counted = sum(row["counted"] for row in runs)
    unfinished = sum(row["state"] not in ("finished", EXPORTED) for row in runs)
    studies = sorted({row["study"] for row in runs})
    return [
        *([f"study {_list(studies)}"] if studies else []),
        f"{_count(counted, 'finished run')} of {_count(sum(arm.counted for arm in results.arms), 'config')}",
        *([f"{unfinished} unfinished"] if unfinished else []),
    ]


def _problems(results: Results, student: Arm) -> str:
    row = results.estimated[student.id, AVERAGE][0]
    answers = f" × {row['k']} answers" if row["k"] else ""
    return f"{_list(sorted(_benchmarks(results, student) - {AVERAGE}))}: {_count(row['problems'], 'problem')}{answers}"


def _list(names: list[str]) -> str:
    return ", ".join(names[:6]) + (f" and {len(names) - 6} more" if names[6:] else "")


def _percent(value: float) -> str:
    return f"{value:.1f}\N{NO-BREAK SPACE}%"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _benchmarks(results: Results, arm: Arm) -> set[str]:
    return {benchmark for of, benchmark in results.estimated if of == arm.id}
