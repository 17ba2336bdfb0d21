"""A trial of one family: a small model of it goes through the harness as a user's would, and is compared with
transformers alone.
"""

import json
import math
import os
import shutil
import traceback
from contextlib import closing
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from hydra import compose
from torch import Tensor
from transformers import logging

import opd
from docs.families.small import model_of, published_of, reads_text
from opd import cli
from opd.checkpoint import store
from opd.checkpoint.steps import step_folder
from opd.config.composing import composing
from opd.config.schema import RunConfig
from opd.data.batch import Rollout, Sampling
from opd.errors import UserError, first_line
from opd.ranks.dist import Ranks
from opd.recipes.build import save
from opd.recipes.tokenizer import build_tokenizer
from opd.records.run_dir import RunDir
from opd.step.assemble import assemble
from opd.step.run import Run
from opd.train import run_dir, train

STEPS = 2
PROBLEMS = ("1+2=", "12*3-4=", "7*(8+9)=", "1234+567-89=")
RUN = [
    *(
        "scale=own",
        "prompts.source.file=problems.jsonl",
        "prompts.suffix=",
        "prompts.template=raw",
        "support=full",
        "whitening=none",
    ),
    *(f"num_steps={STEPS}", f"batch_size={len(PROBLEMS)}", f"epochs={STEPS}", "samples_per_prompt=2"),
    *("max_response_length=16", "optim.lr=0.003", "checkpoint.every=1", "checkpoint.asynchronous=false", "threads=1"),
]
# The most that two log-probs in float32 may differ, of logits up to 20.
TOLERANCE = 2e-3
# Logits up to 20 leave one token to draw; at this temperature any may be.
HOT = 5.0
OTHER = "qwen3"  # the student of a family as a teacher


@dataclass(frozen=True)
class Outcome:
    """How a family's trial ended.

    `state`: "none", where transformers makes no small model of it, with its error; "works"; "refused", with the
    sentence; "wrong", where the numbers are not those of transformers alone; "fails", with the error and the place in
    `opd` that it passed last. `text`: whether the family's model reads token ids alone. `deviation`: the largest of the
    log-probs of learner, teacher, sampler and final checkpoint. `kind`: the family's class.
    """

    state: str
    text: bool = True
    sampler: str = ""
    deviation: float | None = None
    sentence: str = ""
    kind: str = ""


class Wrong(Exception):
    """What the harness computes is not what transformers does."""


def trial(family: str, folder: Path) -> Outcome:
    """The outcome of `family`; everything is written below `folder`, which becomes the working folder."""
    logging.set_verbosity_error()
    torch.set_num_threads(1)
    os.chdir(folder)
    try:
        make(family)
    except Exception as error:  # of any type
        return Outcome("none", text=False, sentence=f"{type(error).__name__}: {first_line(error)}")
    text = reads_text(published_of("student"), torch.arange(3, 9)[None])
    try:
        return _tried(text)
    except Wrong as error:
        return Outcome("wrong", text, sentence=str(error))
    except UserError as error:
        return Outcome("refused", text, sentence=str(error))
    except Exception as error:
        return Outcome("fails", text, sentence=_where(error))


def make(family: str) -> None:
    """Saves a student and a teacher of the family, a student of another one, and problems, in the working folder."""
    tokenizer = build_tokenizer()
    tokens = {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id, "bos_token_id": 1}
    tokens["eos_token_id"] = tokenizer.eos_token_id
    for seed, (name, kind) in enumerate({"student": family, "teacher": family, "other": OTHER}.items()):
        save(model_of(kind, tokens, seed=seed), tokenizer, Path(name))
    rows = [{"id": f"p{index}", "problem": text, "answer": "1"} for index, text in enumerate(PROBLEMS)]
    Path("problems.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def _tried(text: bool) -> Outcome:
    as_student, as_teacher = configs()
    with closing(assembled(as_student)) as run:
        sampler = _sampler(run)
        rollout = run.sampler.sample(run.prompts, Sampling(2, 16, HOT, 1.0, 0), key=(1,))
        if not text:
            raise Wrong("it is accepted, though transformers alone cannot read text with it")
        found = {
            "learner": _deviation(run.policy.scores(rollout).logp, "student", rollout),
            "sampler": _deviation(rollout.rollout_logp, "student", rollout, temperature=HOT),
            "teacher": _deviation(run.teachers.score(rollout, [0]).logp[0], "teacher", rollout),
        }
        _check(found)
        folder = _trained(as_student)
        _resumed(as_student, folder)
        store.load(step_folder(folder.checkpoints, STEPS), run.learned)
        final = str(folder.checkpoints / "final")
        found["final checkpoint"] = _deviation(run.policy.scores(rollout).logp, final, rollout)
        _check(found)
        if torch.equal(plain_logp("student", rollout), plain_logp(final, rollout)):
            raise Wrong("its final checkpoint has the weights of the start")
    _trained(as_teacher)
    return Outcome("works", text, sampler, max(found.values()))


@cache
def configs() -> tuple[RunConfig, RunConfig]:
    """The checked configs of both runs: of the family's student, and of another student that the family teaches."""
    with composing():
        return (
            cli.prepared(compose("config", overrides=[*RUN, "student.model=student", "teacher.models=[teacher]"])),
            cli.prepared(compose("config", overrides=[*RUN, "student.model=other", "teacher.models=[student]"])),
        )


def assembled(config: RunConfig) -> Run:
    """The run of a config, on this process alone, at its start."""
    return assemble(config, run_dir(config), Ranks(rank=0, size=1, device=torch.device("cpu"), grouped=False))


def plain_logp(model: str, rollout: Rollout, *, temperature: float = 1.0) -> Tensor:
    """The log-probs of a rollout's tokens by transformers alone, row by row, as `Scorer.scores` lays them out."""
    loaded = published_of(model)
    logp = torch.zeros(rollout.tokens.shape)
    for row in range(len(rollout)):
        prompt = rollout.prompt[row][rollout.prompt_mask[row]]
        response = rollout.tokens[row][rollout.mask[row]]
        with torch.no_grad():
            logits = loaded(torch.cat((prompt, response[:-1]))[None]).logits[0, len(prompt) - 1 :].float()
        logp[row, : len(response)] = (logits / temperature).log_softmax(-1).gather(-1, response[:, None])[:, 0]
    return logp


def _sampler(run: Run) -> str:
    """Ours, or transformers' own, with or without a cache."""
    way: Any = run.sampler.way  # pyright: ignore[reportAttributeAccessIssue]
    if not way.slow:
        return "ours"
    return "transformers" if way.batch.keywords["cached"] else "transformers, without a cache"


def _deviation(ours: Tensor, model: str, rollout: Rollout, *, temperature: float = 1.0) -> float:
    return float((ours - plain_logp(model, rollout, temperature=temperature))[rollout.mask].abs().max())


def _check(found: dict[str, float]) -> None:
    for what, deviation in found.items():
        if not deviation <= TOLERANCE:
            raise Wrong(f"the log-probs of its {what} are off by {deviation:.2g} nats")


def _trained(config: RunConfig) -> RunDir:
    status = train(config)
    folder = run_dir(config)
    losses = [(line["loss"], line["grad_norm"]) for line in folder.metrics()]
    if status.state != "finished" or len(losses) != STEPS:
        raise Wrong(f"its run ends as {status.state} after {len(losses)} of {STEPS} steps")
    if not all(map(math.isfinite, sum(losses, ()))) or not all(norm > 0 for _, norm in losses):
        raise Wrong(f"its losses and gradient norms are {losses}")
    return folder


def _resumed(config: RunConfig, folder: RunDir) -> None:
    """Takes the run back to its first step and lets it go on, which must end as before."""
    before = _content(folder)
    for name in (step_folder(folder.checkpoints, STEPS).name, "final"):
        shutil.rmtree(folder.checkpoints / name)
    folder.update_status(state="running", step=STEPS - 1)
    _trained(config)
    after = _content(folder)
    if differing := sorted(name for name in before if before[name] != after.get(name)):
        raise Wrong(f"a run that is resumed ends otherwise than one that is not ({differing[0]})")


def _content(folder: RunDir) -> dict[str, Any]:
    clock = ("time", "throughput/", "memory/")
    lines = [{key: value for key, value in line.items() if not key.startswith(clock)} for line in folder.metrics()]
    files = sorted(folder.checkpoints.rglob("*.safetensors"))
    return {"metrics": lines, **{str(file.relative_to(folder.checkpoints)): file.read_bytes() for file in files}}


def _where(error: Exception) -> str:
    root = Path(opd.__file__).parent
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if root in Path(frame.filename).parents]
    at = f" ({Path(frames[-1].filename).relative_to(root.parent)}:{frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {first_line(error)}{at}"
