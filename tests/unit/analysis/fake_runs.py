"""Run directories with made-up numbers, for tests only. They are written with the writer that real runs use."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from analysis import report
from analysis.command import parse
from opd.config.identity import config_hash, run_id
from opd.records.run_dir import RunDir, Sample, Status
from opd.records.texts import pack

HOSTILE = [
    "</script><script>window.hacked = 1</script>",
    '"><img src=x onerror="window.hacked = 1">',
    '<a href="javascript:window.hacked = 1">click</a>',
    '=HYPERLINK("http://example.invalid", "x")',
    "{{ 7 * 7 }} {% raw %} %{x} $x$",
    "a|b`c`<b>d</b>\u202eevil\u0000\ud800 " + "long" * 500,
]


@dataclass(frozen=True)
class Fake:
    """What a made-up run is like. mean@k climbs from `base` to `final` over `num_steps`."""

    name: str = "default"
    study: str = "demo"
    seed: int = 0
    state: str = "finished"
    step: int | None = None  # where it is; None: at its end
    num_steps: int = 100
    every: int = 10
    k: int = 8
    benchmarks: Mapping[str, int] = field(default_factory=lambda: {"arithmetic": 60})
    base: float = 0.3
    final: float = 0.93
    error: str | None = None
    said: str = ""  # the beginning of the texts of its last evaluation; none where empty
    config: Mapping[str, Any] = field(default_factory=dict)


def write_run(root: Path, fake: Fake, *, folder: str | None = None) -> RunDir:
    """Writes the run under `root` as a real run would and returns it."""
    config = {
        "name": fake.name,
        "study": fake.study,
        "seed": fake.seed,
        "num_steps": fake.num_steps,
        "evaluate": {"k": fake.k, "every": fake.every, "at_start": True, "benchmarks": sorted(fake.benchmarks)},
        **fake.config,
    }
    run = RunDir(root / (folder or f"{fake.study}/{run_id(config)}"))
    run.write_config(json.dumps(config) + "\n")  # JSON is YAML
    step = fake.num_steps if fake.step is None else fake.step
    at = "2026-01-01T00:00:00+00:00"
    run.write_status(Status(fake.state, step, fake.num_steps, fake.error, at, at, "host", None, 1))  # pyright: ignore
    if fake.state != "pending":
        run.write_manifest({"run_id": run_id(config), "config_hash": config_hash(config), "world_size": 1})
    rng = np.random.default_rng([fake.seed, sum(fake.name.encode(errors="replace"))])
    lines: list[dict[str, float]] = [{"step": 0, "time": 0.1}]
    lines += [training(now, fake, rng) for now in range(1, step + 1)]
    last = [fake.num_steps] if step == fake.num_steps else []
    evaluated = sorted({*range(0, step + 1, fake.every), *last})
    for now in evaluated:
        answers = samples(now, fake, rng)
        run.write_samples(now, answers, texts(answers, fake.said) if fake.said and now == evaluated[-1] else b"")
        of = {name: [row.num_tokens for row in answers if row.benchmark == name] for name in fake.benchmarks}
        lines[now]["evaluate/num_tokens"] = float(np.mean([np.mean(lengths) for lengths in of.values()]))
    for line in lines:
        run.append_metrics(line)
    return run


def skill(step: int, fake: Fake) -> float:
    """An S-shaped climb, steepest at a third of the way."""
    if not fake.num_steps:
        return fake.final
    start, now, end = (1 / (1 + np.exp(-12 * (at - 0.33))) for at in (0.0, step / fake.num_steps, 1.0))
    return fake.base + (fake.final - fake.base) * float((now - start) / (end - start))


def training(step: int, fake: Fake, rng: np.random.Generator) -> dict[str, float]:
    gap = 1 - skill(step, fake)
    return {
        "step": step,
        "time": 1.5 * step,
        "divergence/reverse_kl": 0.4 * gap * rng.lognormal(0, 0.2),
        "entropy/student": 0.15 + 0.5 * gap * rng.lognormal(0, 0.1),
        "loss": float(rng.normal(0, 0.05)),
        "grad_norm": 0.3 * rng.lognormal(0, 0.4) + 0.5 * gap,
        "filter/kept": 1.0,
        "rollout_correction/masked": float(np.clip(0.005 + 0.01 * rng.exponential(), 0, 1)),
        "rollout_correction/log_ppl_drift": float(rng.normal(0, 0.01)),
        "response/length": 34 - 8 * gap + float(rng.normal(0, 0.6)),
        "response/truncated": float(np.clip(0.1 * gap + rng.normal(0, 0.004), 0, 1)),
        "time/rollout": 0.9,
    }


def samples(step: int, fake: Fake, rng: np.random.Generator) -> list[Sample]:
    """k answers to each problem. A problem's difficulty depends on its benchmark and number alone."""
    rows = []
    mean = skill(step, fake)
    for benchmark, size in fake.benchmarks.items():
        hard = np.random.default_rng(sum(benchmark.encode())).normal(0, 1.2, size)
        centre = np.log(mean / (1 - mean)) * 1.25
        correct = rng.random((size, fake.k)) < 1 / (1 + np.exp(hard - centre))[:, None][:, [0] * fake.k]
        for problem in range(size):
            right = str(17 + 3 * problem)
            for sample in range(fake.k):
                wrong = None if rng.random() < 0.2 else str(17 + 3 * problem + int(rng.integers(1, 5)))
                is_right = bool(correct[problem, sample])
                length = int(rng.integers(12, 60))
                rows.append(
                    Sample(
                        benchmark=benchmark,
                        problem_id=f"{benchmark}-{problem:04d}",
                        sample=sample,
                        correct=is_right,
                        score=float(is_right),
                        answer=right,
                        prediction=right if is_right else wrong,
                        num_tokens=length,
                        truncated=wrong is None and not is_right,
                    )
                )
    return rows


def texts(answers: Sequence[Sample], said: str) -> bytes:
    """A text for the first answer to each problem, which begins with `said`, as does the problem's."""
    first = [answer for answer in answers if answer.sample == 0]
    return b"".join(
        pack(
            answer.benchmark,
            answer.problem_id,
            [f"{said}\nit is {answer.prediction}"],
            problem=f"{said}, what is {answer.answer}?",
        )
        for answer in first
    )


def write_demo(root: Path) -> None:
    """What `make demo` leaves: a base student that climbed to its teacher, and the ladder of teachers."""
    for name, score in (("teacher-small", 0.62), ("teacher-medium", 0.86), ("teacher-large", 0.978)):
        write_run(root, Fake(said="So", name=name, final=score, num_steps=0))
    for seed in range(3):
        write_run(root, Fake(said="So", seed=seed, final=0.94))
        write_run(root, Fake(said="So", name="hard_switch", seed=seed, final=0.955))
    write_run(root, Fake(said="So", name="tis", final=0.91))
    write_run(root, Fake(said="So", name="low_lr", final=0.7))
    write_run(root, Fake(said="So", name="kl_70_100", state="running", step=57, final=0.95))
    write_run(
        root,
        Fake(said="So", name="naive", state="failed", step=83, final=0.5, error="ValueError: loss is not finite\nat"),
    )


def write_broken(root: Path) -> None:
    """One of each kind of damage, and names and answers of someone who wishes the reader ill."""
    write_run(root, Fake(), folder="demo/copy-of-default")
    write_run(root, Fake(name="torn", seed=1)).metrics_file.open("ab").write(b'{"step": 101, "lo')
    run = write_run(root, Fake(name="garbled"))
    run.samples_file(50).write_text("not json\n")
    run = write_run(root, Fake(name="short"))
    lines = run.samples_file(100).read_bytes().splitlines(keepends=True)
    run.samples_file(100).write_bytes(b"".join(lines[:-1]))
    (root / "foreign").mkdir()
    (root / "foreign/config.yaml").write_text("model: {layers: 12}\n")
    (root / "empty").mkdir()
    (root / "empty/status.json").write_text("")
    write_run(root, Fake(name="pending", state="pending", step=0)).samples_file(0).unlink()
    for position, text in enumerate(HOSTILE):
        fake = Fake(name=text, study=text, seed=position, state="failed", step=20, num_steps=20, error=text)
        run = write_run(root, fake, folder=f"hostile/{position}")
        for step in run.evaluations():
            bad = {"prediction": text, "answer": text}
            answers = [
                Sample(**{**vars(sample), "problem_id": f"{text}-{sample.problem_id}", **bad})
                for sample in run.samples(step)
            ]
            run.write_samples(step, answers, texts(answers, f"{text}\u2028"))


if __name__ == "__main__":
    import sys

    write_demo(Path(sys.argv[1]))
    if sys.argv[2:] == ["broken"]:
        write_broken(Path(sys.argv[1]))


def report_files(*arguments: str) -> dict[str, str | bytes]:
    """File name → content of the report that these arguments make."""
    return report.build(parse(arguments, report.Arguments))[0]
