"""On-policy distillation: one run, or with -m several.

  python -m opd.train                              the default: a tiny student and teacher, on a laptop
  python -m opd.train +experiment=hard_switch      a published arm
  python -m opd.train scale=qwen3_4b               the published setting
  python -m opd.train gamma=0.5 seed=1             any key by its name
  python -m opd.train config=FILE                  a recorded run, again
  python -m opd.train preflight=true               what the run needs and reads, before it begins
  python -m opd.train --cfg job                    the composed config
  python -m opd.train -m +sweep=gamma              a sweep, here; on a cluster: python -m sweeps.submit

Each run is kept in outputs/<study>/<name>-<hash>-s<seed>; the same command resumes a killed run.
"""

import os
import shlex
import socket
import sys
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hydra
from omegaconf import DictConfig, OmegaConf

from opd import cli
from opd.check import config as check
from opd.check.refusals import warnings
from opd.checkpoint.push import push, refuse_push
from opd.config import identity
from opd.config.schema import RunConfig
from opd.errors import UserError
from opd.interrupts import PREEMPTED, Interrupted, StopOnSignal
from opd.printable import say, warn
from opd.ranks.dist import Ranks, world
from opd.records import config_argument, files
from opd.records.begun import as_begun
from opd.records.claim import claimed
from opd.records.run_dir import RunDir, Status, changed_keys

# Set by `sweeps.task`: a run of a submission records its start and its refusal, which `sweeps.status` shows.
SUBMITTED = "OPD_SUBMITTED"


def run_dir(config: RunConfig) -> RunDir:
    """`<paths.outputs>/<study>/<run_id>`."""
    return RunDir(Path(config.paths.outputs) / config.study / identity.run_id(check.as_dict(config)))


def train(config: RunConfig) -> Status:
    """Run or resume a run; return its last status. A new run that is refused leaves no directory, a resumed one the
    records as they were.

    Raises:
        UserError: where another process has the directory's lock, it contains another config, or the run cannot resume.
    """
    folder = run_dir(config)
    if world()[0] > 0:
        return _train_other_rank(config, folder)
    refuse_push(config)
    with claimed(folder.path):
        status = _train(config, folder)
        if status.state == "finished":
            push(config, folder)
        return status


def _train_other_rank(config: RunConfig, folder: RunDir) -> Status:
    """Run on a rank other than the main one, which writes no records and prints nothing."""
    with suppress(files.RecordError):
        before = folder.status() if folder.status_file.exists() else None
        if before is not None and before.state == "finished":
            return before
    return _run(config, folder, _Start(lambda: None))


@dataclass
class _Start:
    """What the main rank writes when the run has passed its checks, and the attempt that it began with that."""

    write: Callable[[], None]
    attempt: int | None = None


def _train(config: RunConfig, folder: RunDir) -> Status:
    content = check.as_dict(config)
    files.remove_parts(folder.path)
    _check_same_config(folder, content)
    before = _status_before(folder)
    if before is not None and before.state == "finished":
        say("already finished; nothing to do")
        return before

    def write() -> None:
        folder.write_config(OmegaConf.to_yaml(OmegaConf.create(content)))
        folder.write_status(
            Status(
                state="running",
                step=before.step if before else 0,
                num_steps=before.num_steps if before else 0,
                error=None,
                started=before.started if before else files.now(),
                updated=files.now(),
                host=socket.gethostname(),
                job_id=os.environ.get("SLURM_JOB_ID"),
                attempts=before.attempts + 1 if before else 1,
            )
        )

    for warning in warnings(config):
        warn(warning)
    start = _Start(write)
    if SUBMITTED in os.environ:
        write()
        start.attempt = folder.status().attempts
    try:
        return _run(config, folder, start)
    except BaseException as error:
        interrupted = isinstance(error, KeyboardInterrupt)
        reason = f"{type(error).__name__}: {error}" if not isinstance(error, UserError) else str(error)
        ending = {"state": "preempted"} if interrupted else {"state": "failed", "error": reason.strip()}
        # The disk may be full, perhaps the cause of the error; report the first one.
        with suppress(OSError, files.RecordError):
            if start.attempt is not None:
                folder.update_status(**ending)
        if interrupted:
            raise Interrupted(f"interrupted; {_resume_hint(folder)}") from None
        raise


def _run(config: RunConfig, folder: RunDir, start: _Start) -> Status:
    # These import torch, which the checks before do not need.
    from opd.ranks import dist
    from opd.ranks.failure_detection import RanksLost, detect_failures

    with StopOnSignal("after this step, or this batch of an evaluation, with a checkpoint") as stopping:
        ranks = dist.start(timeout=config.compute.rank_timeout, group=config.compute.grouped)
        try:
            with detect_failures(ranks, timeout=config.compute.rank_timeout, resume=lambda: _resume_hint(folder)):
                return _train_steps(config, folder, ranks, start, stopping)
        except RanksLost as error:
            if error.first and not ranks.main:
                with suppress(OSError, files.RecordError):
                    if folder.status().attempts == start.attempt:  # no other process has started the run meanwhile
                        folder.update_status(state="failed", error=str(error))
            raise
        finally:
            if ranks.grouped:  # an engine in this process may have a group of its own
                dist.stop()


def _resume_hint(folder: RunDir) -> str:
    from opd.checkpoint.steps import saved_steps

    saved = saved_steps(folder.checkpoints)
    return f"the same command resumes from step {saved[-1]}" if saved else "the same command starts again at step 1"


def _train_steps(config: RunConfig, folder: RunDir, ranks: Ranks, start: _Start, stopping: StopOnSignal) -> Status:
    from opd.checkpoint import store as checkpoint
    from opd.checkpoint.steps import step_folder
    from opd.records.manifest import manifest, vocabulary_hash
    from opd.records.model_card import model_card
    from opd.step.assemble import assemble
    from opd.step.contents import check_same, contents, date_in_prompts, with_date
    from opd.step.evaluation import where_it_left
    from opd.step.loop import loop
    from opd.step.observers import observe
    from opd.watch.tracker import Tracker, track

    tracker = Tracker()
    outcome = "failed"
    cleanup = ExitStack()
    cleanup.callback(lambda: tracker.finish(failed=outcome == "failed"))

    try:
        content, before = check.as_dict(config), _manifest_before(folder, ranks)
        given, config = config, with_date(config, before.get("date"))
        run = assemble(config, folder, ranks)
        cleanup.callback(run.close)
        vocabulary = vocabulary_hash(run.tokenizer.get_vocab())
        done, progress = _newest_intact(folder, ranks), None
        if done:
            progress = checkpoint.load(step_folder(folder.checkpoints, done), run.learned)
            run.sampler.sync()

        def begin() -> None:
            nonlocal tracker
            made_of = contents(config, run.tokenizer, run.benchmarks, run.prompts)
            if done:
                check_same(folder, before, made_of)
            tracker = track(given, folder)
            start.write()
            start.attempt = folder.status().attempts
            if done:
                say(f"{folder.path}: resuming after step {done} of {run.num_steps}")
            folder.write_manifest(
                manifest(
                    content,
                    world_size=ranks.size,
                    tokenizers={"student": vocabulary},
                    contents=made_of,
                    date=date_in_prompts(config, run.tokenizer, given=content),
                    vocab_size=run.learned.cut_to,
                    unchecked=run.teachers.unchecked,
                )
            )
            for warning in folder.rewind(done if done else -1):
                warn(warning)
            tracker.begin(folder.metrics())
            folder.update_status(step=done, num_steps=run.num_steps)

        ranks.on_main(begin)
        start.attempt = folder.status().attempts  # of the other ranks too
        best, unfinished = where_it_left(run, progress)
        with observe(run, tracker) as report, run.background:
            stopping.begin()
            complete = loop(run, start=done + 1, best=best, unfinished=unfinished, stopping=stopping, report=report)
            ranks.on_all(run.background.wait)
        if complete:
            texts = {}
            if ranks.main:
                texts = {
                    "README.md": model_card(folder, num_steps=run.num_steps),
                    "generation_config.json": _sampling(run),
                }
            write = checkpoint.final(run.learned, texts, ranks)
            write(folder.checkpoints / "final", ranks)
        outcome = "finished" if complete else "preempted"
        ranks.on_main(lambda: folder.update_status(state=outcome))
        return folder.status()
    except KeyboardInterrupt:
        outcome = "preempted"
        raise
    finally:
        cleanup.close()


def _newest_intact(folder: RunDir, ranks: Ranks) -> int:
    """The step of the checkpoint to resume from, 0 without one; the main rank verifies them for all ranks."""
    from opd.checkpoint.steps import newest_intact

    newest: list[int | None] = []

    ranks.on_main(lambda: newest.append(newest_intact(folder.checkpoints, warn)))
    return ranks.gather(newest[0] if ranks.main else None)[0] or 0


def _manifest_before(folder: RunDir, ranks: Ranks) -> dict[str, Any]:
    """The manifest that an earlier process left, as the main rank reads it; empty without one that can be read."""
    found: list[dict[str, Any]] = []
    if ranks.main:
        with suppress(files.RecordError):
            found = [folder.manifest()] if folder.manifest_file.exists() else []
    return (ranks.gather(found)[0] or [{}])[0]


def _sampling(run: Any) -> str:
    """The `generation_config.json`: sampling as in evaluations, and the stop tokens."""
    from transformers import GenerationConfig

    from opd.model.load import stop_token_ids

    settings, greedy = run.config.evaluate, run.config.evaluate.temperature == 0
    chosen = {} if greedy else {"temperature": settings.temperature, "top_p": settings.top_p, "top_k": settings.top_k}
    return GenerationConfig(
        do_sample=not greedy,
        eos_token_id=list(stop_token_ids(run.learned.model, run.tokenizer)),
        pad_token_id=run.tokenizer.pad_token_id,
        **chosen,
    ).to_json_string()


def _status_before(folder: RunDir) -> Status | None:
    """The status that an earlier process left; None without one that can be read: checkpoints say how far it came."""
    try:
        return folder.status() if folder.status_file.exists() else None
    except files.RecordError as error:
        warn(f"{error}; it is written anew")
        return None


def _check_same_config(folder: RunDir, content: dict[str, Any]) -> None:
    if not folder.config_file.exists():
        return
    try:
        old = folder.config()
    except files.RecordError as error:
        warn(f"{error}; it is written anew, with the config whose hash is in the directory's name")
        return
    changed = [key for key in changed_keys(old, content) if identity.is_hashed(key)]
    if changed:
        raise UserError(
            f"{folder.path}: contains a run with another config, which differs in {', '.join(changed)}; "
            "give this run another name= or study=, or remove that directory"
        )


@hydra.main(config_path=str(cli.CONF), config_name="config", version_base="1.3")
@cli.job
def _main(composed: DictConfig) -> None:
    config = as_begun(cli.prepared(composed))
    if config.preflight:
        from opd.preflight.run import preflight

        return preflight(config, run_dir(config))
    status = train(config)
    if status.state == "preempted":
        print("opd: preempted; rerun the same command to resume", file=sys.stderr)
        sys.exit(PREEMPTED)
    if world()[0] == 0:
        folder = run_dir(config).path
        say(f"{folder}: {status.state}")
        study, own = shlex.quote(str(folder.parent)), shlex.quote(str(folder))
        say(f"  its report        python -m analysis.report runs={study} out=report/{folder.parent.name}")
        say(f"  more answers      python -m opd.evaluate run={own} evaluate.k=32")


if __name__ == "__main__":
    cli.main(_main, config_argument.expand, about=__doc__)
