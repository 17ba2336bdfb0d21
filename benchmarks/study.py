"""A big study with made-up numbers: the records of many runs, as runs write them; nothing is trained.

python -m benchmarks.study DIR [--runs 1000 --steps 1000 --evaluations 7 --problems 200 --samples 8]
"""

import argparse
import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
from omegaconf import OmegaConf

from opd.config.identity import config_hash, run_id
from opd.records.files import json_line, write_atomic
from opd.records.manifest import manifest
from opd.records.run_dir import RunDir, Sample, Status

SEEDS = 5  # an arm
WRONG = 6  # different wrong answers to a problem
TEACHERS = {"teacher-small": 0.62, "teacher-medium": 0.86, "teacher-large": 0.97}
AT = "2026-01-01T00:00:00+00:00"


@dataclass(frozen=True)
class Size:
    """How much there is: runs, steps a run, evaluations a run (the first before training, the last at its end),
    problems an evaluation, answers to a problem.
    """

    runs: int = 1000
    steps: int = 1000
    evaluations: int = 7
    problems: int = 200
    samples: int = 8


def add_size(parser: argparse.ArgumentParser) -> None:
    """The options --runs, --steps, …"""
    for field in fields(Size):
        parser.add_argument(f"--{field.name}", type=int, default=field.default)


def size_of(args: argparse.Namespace) -> Size:
    return Size(**{field.name: getattr(args, field.name) for field in fields(Size)})


def write_study(root: Path, size: Size) -> None:
    """Writes finished runs under `root`: arms of `SEEDS` seeds, the first the default, the last the teachers."""
    from opd.check import config as check
    from sweeps.compose import composer

    every = -(-size.steps // (size.evaluations - 1))
    steps = [f"num_steps={size.steps}", "batch_size=32", f"prompts.source.num={32 * size.steps}"]
    with composer() as composed:
        config = check.as_dict(composed.config(["study=big", *steps, f"evaluate.every={every}"]))
    like = manifest(config, world_size=1, tokenizers={}, contents={})
    lines, evaluated = _answers(size), [*range(0, size.steps, every), size.steps]
    names = ["default", *(f"arm_{number:03d}" for number in range(1, -(-size.runs // SEEDS) - len(TEACHERS)))]
    names += list(TEACHERS)
    for number in range(size.runs):
        name, seed = names[number // SEEDS], number % SEEDS
        rng = np.random.default_rng([number // SEEDS, seed])
        final = TEACHERS.get(name, 0.55 + 0.4 * np.random.default_rng(number // SEEDS).random())
        own = config | {"name": name, "seed": seed, "gamma": round(1 - number // SEEDS / size.runs, 6)}
        run = RunDir(root / "big" / run_id(own))
        run.write_config(OmegaConf.to_yaml(OmegaConf.create(own)))
        run.write_manifest(like | {"run_id": run_id(own), "config_hash": config_hash(own)})
        run.write_status(Status("finished", size.steps, size.steps, None, AT, AT, "host", None, 1))
        write_atomic(run.metrics_file, _curves(size, final, rng))
        for step in evaluated:
            skill = 0.2 + (final - 0.2) * (1 - np.exp(-4 * step / size.steps))
            write_atomic(run.samples_file(step), _evaluation(lines, skill, rng))


def _answers(size: Size) -> np.ndarray:
    """Every line an evaluation may hold, "problem sample variant"; variant 0 is right, the last finds no answer."""
    return np.array(
        [
            [
                [
                    json.dumps(
                        asdict(
                            Sample(
                                benchmark="arithmetic",
                                problem_id=f"addition-2-{problem}+16",
                                sample=sample,
                                correct=variant == 0,
                                score=float(variant == 0),
                                answer=str(problem + 16),
                                prediction=str(problem + 16 + variant) if variant <= WRONG else None,
                                num_tokens=15 + problem % 40 + variant,
                                truncated=variant > WRONG,
                            )
                        )
                    )
                    for variant in range(WRONG + 2)
                ]
                for sample in range(size.samples)
            ]
            for problem in range(size.problems)
        ],
        dtype=object,
    )


def _evaluation(lines: np.ndarray, skill: float, rng: np.random.Generator) -> str:
    problems, samples, variants = lines.shape
    ease = np.log(skill / (1 - skill)) - np.random.default_rng(0).normal(0, 1.2, problems)
    right = rng.random((problems, samples)) < (1 / (1 + np.exp(-ease)))[:, None]
    variant = np.where(right, 0, rng.integers(1, variants, (problems, samples)))
    return "\n".join(np.take_along_axis(lines, variant[..., None], axis=2).ravel()) + "\n"


def _curves(size: Size, final: float, rng: np.random.Generator) -> str:
    """metrics.jsonl, with the keys of a run of the default experiment."""
    start = json_line({"step": 0, "time": 0.5})
    gap = 1 - final * (1 - np.exp(-4 * np.arange(1, size.steps + 1) / size.steps))
    noise = rng.normal(0, 1, (size.steps, len(_NOISY)))
    rows = [
        json_line(
            {"step": step, "time": 1.75 * step, "lr": 0.0004}
            | {name: gap[step - 1] * (1 + 0.1 * value) for name, value in zip(_NOISY, noise[step - 1], strict=True)}
            | _CONSTANT
        )
        for step in range(1, size.steps + 1)
    ]
    return start + "".join(rows)


_NOISY = (
    "loss", "grad_norm", "whitening/mean", "whitening/std", "divergence/reverse_kl", "divergence/value",
    "entropy/student", "entropy/teacher", "response/length", "response/truncated", "response/tokens", "filter/kept",
    "rollout_correction/log_ppl_drift", "rollout_correction/ppl_ratio", "rollout_correction/abs_log_ratio",
    "rollout_correction/ratio_max", "rollout_correction/masked", "time/step", "throughput/tokens_per_second",
    "throughput/model_tflops", "time/rollout", "time/teacher", "time/student", "time/reward", "time/backward",
    "time/optimizer",
)  # fmt: skip
_CONSTANT = {
    "shaping/clipped": 0.0, "divergence/clamped": 0.0, "filter/not_eligible": 0.0, "filter/filtered": 0.0,
    "filter/mismatched": 0.0, "rollout_correction/ess": 1.0, "memory/peak_gb": 0.6218752,
}  # fmt: skip


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="DIR")
    add_size(parser)
    arguments = parser.parse_args()
    write_study(arguments.folder, size_of(arguments))
