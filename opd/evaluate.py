"""Evaluate a model: k graded answers to each problem, one record per sample.

  python -m opd.evaluate run=DIR                   a run's final checkpoint, as the run was configured
  python -m opd.evaluate run=DIR step=100          the checkpoint of a step
  python -m opd.evaluate model=PATH evaluate.benchmarks=[gsm8k,test.jsonl]    a directory, a hub id or sft:NAME
  python -m opd.evaluate … evaluate.k=32 evaluate.benchmarks=[aime24,hmmt25] name=mine

The answers are kept in outputs/evaluate/<name>-<hash>-s<seed>, as those of a run without steps; study=NAME keeps them
elsewhere. The same command goes on where an evaluation was interrupted or killed. evaluate.benchmarks may name files of
your own (docs/your-data.md), and aime24, aime25, arithmetic, ascend, beyondaime, brumo25, gsm8k, hmmt25, sort.
"""

import os
import re
import socket
import sys
from contextlib import closing, nullcontext
from pathlib import Path
from typing import Any

import hydra
from omegaconf import DictConfig, OmegaConf

from opd import cli
from opd.check import config as check
from opd.checkpoint.atomic import CHECKSUMS, find_damage
from opd.checkpoint.steps import find_step_damage
from opd.config import identity
from opd.config.schema import RunConfig
from opd.config.words import typed
from opd.errors import UserError
from opd.interrupts import PREEMPTED, Interrupted, StopOnSignal
from opd.printable import say, warn
from opd.ranks.dist import world
from opd.records import config_argument, files as records
from opd.records.claim import claimed
from opd.records.run_dir import RunDir, Status


def evaluate(config: RunConfig) -> dict[str, float] | None:
    """Evaluate `config.student.model`, record the answers as a run without steps, and return the scores; None where a
    signal ended it. The finished answers of one that has ended too early are kept, and the next goes on from them.
    """
    settings = config.evaluate
    if not settings.benchmarks:
        raise UserError(
            "evaluate.benchmarks=[]: name at least one, as evaluate.benchmarks=[gsm8k] or a file of yours, [test.jsonl]"
        )
    if config.student.lora is not None:
        raise UserError("student.lora: an evaluation trains nothing; set lora=none")
    if world()[1] > 1:
        raise UserError("opd.evaluate runs in one process; start it without torchrun, as one task")
    folder = RunDir(Path(config.paths.outputs) / config.study / identity.run_id(check.as_dict(config)))
    with claimed(folder.path):  # fail now rather than after the evaluation
        try:
            with StopOnSignal("after this batch of answers") as stopping:
                return _evaluate(config, folder, stopping)
        except KeyboardInterrupt:
            kept = any(folder.answers_folder(0).glob("*.json"))
            raise Interrupted(
                "interrupted; the same command goes on from the answers that were finished"
                if kept
                else "interrupted before any batch of answers was finished; the same command begins again"
            ) from None


def _evaluate(config: RunConfig, folder: RunDir, stopping: StopOnSignal) -> dict[str, float] | None:
    from opd.model.load import stop_token_ids
    from opd.model.sharded import shard
    from opd.model.widths import Vocabulary, cut, width
    from opd.ranks import dist
    from opd.records.answers import KeptAnswers, answers_of, forget
    from opd.records.manifest import manifest, vocabulary_hash
    from opd.step.assemble import build_sampler, load_benchmarks, load_student, load_student_tokenizer, with_environment
    from opd.step.benchmarks import answer_benchmarks, summarize
    from opd.step.contents import contents, date_in_prompts, with_date
    from opd.step.startup_checks import unopened_turn
    from opd.watch.progress import Answers

    content, settings, key, started = check.as_dict(config), config.evaluate, (config.seed, 0, 1), records.now()
    ranks = dist.start(timeout=config.compute.rank_timeout)
    begun = folder.answers_folder(0) / "date"  # of an evaluation that has ended too early
    config = with_date(config, begun.read_text() if begun.exists() else None)
    tokenizer = load_student_tokenizer(config)
    for sentence in unopened_turn(config, tokenizer):
        warn(sentence)
    model = load_student(config, tokenizer)
    vocabulary = Vocabulary({"student.model": width(model.config)}, config.student.vocab_size)
    vocabulary.check(tokenizer, stop_token_ids(model, tokenizer))
    cut(model, vocabulary.size, key="student.model")
    benchmarks = load_benchmarks(config, tokenizer, model)
    made_of = contents(config, tokenizer, benchmarks)
    of = answers_of(identity.config_hash(content), made_of, key, settings.texts)
    root = shard(model, ranks, config.compute, learns=False)
    with closing(build_sampler(config, root, tokenizer)) as sampler:
        stopping.begin()
        records.write_atomic(begun, str(config.prompts.date))
        asked = ", ".join(f"{len(problems)} problems of {name}" for name, problems in benchmarks.items())
        say(f"{settings.k} answers to each of {asked}")
        answered = answer_benchmarks(
            with_environment(config, sampler, tokenizer, ranks),
            benchmarks,
            settings,
            tokenizer,
            key=key,
            ranks=ranks,
            kept=KeptAnswers(folder.answers_folder(0), of),
            stopping=stopping,
            report=Answers().answered,
            clock=lambda stage: nullcontext(),
        )
    if answered is None:
        return None
    samples = [sample for problem in answered for sample in problem.samples]
    scores = summarize(samples)
    folder.write_config(OmegaConf.to_yaml(OmegaConf.create(content)))
    folder.write_manifest(
        manifest(
            content,
            world_size=1,
            tokenizers={"student": vocabulary_hash(tokenizer.get_vocab())},
            contents=made_of,
            date=date_in_prompts(config, tokenizer, given=content),
        )
    )
    folder.write_samples(0, samples, b"".join(problem.texts for problem in answered))
    records.write_atomic(folder.metrics_file, records.json_line({"step": 0, **scores}))
    folder.write_status(
        Status("finished", 0, 0, None, started, records.now(), socket.gethostname(), os.environ.get("SLURM_JOB_ID"), 1)
    )
    forget(folder.answers_folder(0))
    for name, value in scores.items():
        percent = "@" in name or name.endswith("truncated")
        say(f"{name:40} {100 * value:8.2f} %" if percent else f"{name:40} {value:8.2f}")
    say(str(folder.path))
    return scores


def arguments(given: list[str]) -> list[str]:
    """`run=DIR [step=N]` or `model=PATH`, and overrides → the overrides of a config that evaluates that model.

    Raises:
        UserError: for anything but exactly one of the two, or a run without that checkpoint.
    """
    named = {key: value for key, _, value in (word.partition("=") for word in given) if key in ("run", "model", "step")}
    rest = [word for word in given if word.partition("=")[0] not in ("run", "model", "step")]
    if ("run" in named) == ("model" in named):
        raise UserError("give either run=DIR (a run's directory) or model=PATH (a directory, hub id or sft:NAME)")
    if "run" in named:
        folder = RunDir(Path(named["run"]).expanduser())
        step = named.get("step")
        if step is not None and not step.isdigit():
            raise UserError(f"step={step}: must be the number of a step that has a checkpoint")
        model = folder.checkpoints / ("final" if step is None else f"step_{int(step):06d}")
        if not model.is_dir():
            raise UserError(f"{model}: there is no such checkpoint; the run has {_checkpoints(folder)}")
        config = config_argument.read(folder.config_file)
        wrong = find_step_damage(folder.checkpoints, int(step)) if step is not None else find_damage(model)
        if (model / CHECKSUMS).exists() and wrong is not None:
            raise UserError(f"{model}: the checkpoint is damaged ({wrong}); the run has {_checkpoints(folder)}")
        # The checkpoint is merged: no adapters are needed.
        config |= {"name": f"{config.get('name')}-{model.name}", "study": "evaluate"}
        config["student"] = {**config.get("student", {}), "model": str(model), "lora": None}
        recorded = _manifest(folder)
        if isinstance(size := recorded.get("vocab_size"), int):  # the final checkpoint has its further rows again
            config["student"]["vocab_size"] = size
        if isinstance(date := recorded.get("date"), str):
            config["prompts"] = {**config.get("prompts", {}), "date": date}
        return [*config_argument.store(config), *rest]
    if "step" in named:
        raise UserError("step=: goes with run=DIR, not with model=PATH")
    model = named["model"]
    model = str(Path(model).expanduser()) if model.startswith("~/") else model
    name = re.sub(r"[^A-Za-z0-9._+-]+", "-", model.removeprefix("sft:").rstrip("/").rpartition("/")[2]).lstrip("._+-")
    chosen = ["teacher=self", f"student.model={typed(model)}", f"name={name or 'model'}", "study=evaluate"]
    if not model.startswith("sft:") and not any(word.startswith("scale=") for word in rest):
        chosen.append("scale=own")
    return [*chosen, *rest]


def _manifest(folder: RunDir) -> dict[str, Any]:
    """What the run recorded of itself; empty where that cannot be read."""
    try:
        return folder.manifest()
    except records.RecordError:
        return {}


def _checkpoints(folder: RunDir) -> str:
    names = sorted(path.name for path in folder.checkpoints.glob("*") if not path.name.startswith("."))
    return ", ".join(names) or "none"


@hydra.main(config_path=str(cli.CONF), config_name="config", version_base="1.3")
@cli.job
def _main(composed: DictConfig) -> None:
    if evaluate(cli.prepared(composed, trains=False)) is None:
        print("opd: preempted; rerun the same command to go on", file=sys.stderr)
        sys.exit(PREEMPTED)


if __name__ == "__main__":
    cli.main(_main, arguments, about=__doc__, groups=("evaluate", "rollout", "scale", "student", "tracker"))
