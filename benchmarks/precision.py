"""What the knobs of precision cost: `python -m benchmarks.precision [override …]`.

The small world's student answers some prompts in float32. Student and teacher score these responses again under each
knob, and a sampler of each precision draws responses of its own, which are compared with what the learner says of them.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from analysis.text import markdown_table
from opd.config.schema import RunConfig
from opd.data.batch import Rollout
from opd.model.sharded import full_tensor
from opd.ranks import dist
from opd.records.run_dir import RunDir
from opd.step.assemble import Run, assemble
from sweeps.compose import composer

LEARNER = ("compute.compile=true", "compute.dtype=bfloat16")
TEACHER = ("teacher.dtype=bfloat16", "teacher.dtype=int8")
SAMPLER = ("rollout.dtype=bfloat16", "rollout.dtype=int8", "rollout.dtype=float8", "rollout.dtype=int4")


def assembled(config: RunConfig) -> Run:
    ranks = dist.start(timeout=60, group=config.compute.grouped)
    return assemble(config, RunDir(Path()), ranks)


def drawn(run: Run) -> Rollout:
    return run.sampler.sample(run.prompts[: run.config.batch_size], run.rollout, key=(run.config.seed, 1))


def gradient(run: Run, rollout: Rollout, advantage: Tensor) -> Tensor:
    run.policy.backward(rollout, -advantage * rollout.mask, None)
    parts = [each.grad for each in run.learned.model.parameters()]
    found = torch.cat([full_tensor(part).flatten().double() for part in parts if part is not None])
    run.learned.model.zero_grad()
    return found


def cosine(one: Tensor, other: Tensor) -> str:
    return f"{torch.nn.functional.cosine_similarity(one, other, dim=0):.6f}"


def differences(found: Tensor, exact: Tensor, mask: Tensor) -> tuple[str, str]:
    off = (found - exact)[mask].abs()
    return f"{off.mean():.1e}", f"{off.max():.1e}"


def main(overrides: Sequence[str]) -> None:
    given = ["scale=small", *overrides]
    with composer() as composed:
        configs = {knob: composed.config([*given, knob]) for knob in (*LEARNER, *TEACHER, *SAMPLER)}
        plain = assembled(composed.config(given))
    rollout, rows = drawn(plain), []
    student, teacher = plain.policy.scores(rollout).logp, plain.teachers.score(rollout, (0,)).logp[0]
    exact = gradient(plain, rollout, teacher - student)
    plain.close()
    for knob, config in configs.items():
        run = assembled(config)
        if knob in SAMPLER:
            own = drawn(run)
            found = differences(own.rollout_logp, run.policy.scores(own).logp, own.mask)
            rows.append((knob, "the sampler's", *found, ""))
        else:
            ours, theirs = run.policy.scores(rollout).logp, run.teachers.score(rollout, (0,)).logp[0]
            of = ("the student's", ours, student) if knob in LEARNER else ("the teacher's", theirs, teacher)
            found = differences(of[1], of[2], rollout.mask)
            rows.append((knob, of[0], *found, cosine(gradient(run, rollout, theirs - ours), exact)))
        run.close()
        if run.ranks.grouped:
            dist.stop()
    print(markdown_table(("knob", "log-probs", "mean error", "largest", "gradient's cosine"), rows))


if __name__ == "__main__":
    main(sys.argv[1:])
