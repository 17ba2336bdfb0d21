"""The arms of `benchmarks.trl`, each a process that makes one training step for each line it reads.

It answers with a line of JSON a step. What the libraries print goes to stderr.
"""

import json
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ARMS = ("trl", "full", "sampled", "full+vllm", "sampled+vllm")


@dataclass(frozen=True)
class Setting:
    """What every arm is given: models and prompts in `folder`, one response a prompt."""

    folder: str
    batch: int
    tokens: int
    steps: int
    threads: int
    logit_chunk: int


class Turns:
    """Waits for its turn, and tells what the turn took."""

    def __init__(self) -> None:
        self.out = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)
        self.before = resident("VmRSS")

    def ready(self) -> None:
        self._say({})
        self._wait()

    def done(self, tokens: float, stages: dict[str, float]) -> None:
        """Ends this step; returns when the next may begin."""
        seconds, cpu = time.perf_counter() - self.start[0], time.process_time() - self.start[1]
        memory = resident("VmHWM") - self.before
        self._say({"seconds": seconds, "cpu": cpu, "tokens": tokens, "stages": stages, "memory": memory})
        self._wait()

    def _say(self, content: dict[str, Any]) -> None:
        print(json.dumps(content), file=self.out, flush=True)

    def _wait(self) -> None:
        sys.stdin.readline()
        self.start = time.perf_counter(), time.process_time()


def resident(field: str) -> int:
    """Bytes of this process in memory: now (VmRSS) or at most so far (VmHWM)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise SystemExit("benchmarks.trl reads /proc, which this system does not have")


def trl(setting: Setting) -> None:
    import torch
    from datasets import Dataset
    from transformers import AutoTokenizer, TrainerCallback, logging
    from trl import DistillationConfig, DistillationTrainer  # pyright: ignore[reportAttributeAccessIssue]

    logging.disable_progress_bar()
    torch.set_num_threads(setting.threads)
    turns, folder = Turns(), Path(setting.folder)

    class Step(TrainerCallback):
        def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
            turns.ready()

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            length = trainer._metrics["train"]["completions/mean_length"][-1]
            turns.done(length * setting.batch, {})

    lines = [json.loads(line) for line in (folder / "prompts.jsonl").read_text().splitlines()]
    settings = DistillationConfig(
        output_dir=str(folder / "trl"),
        beta=1.0,
        temperature=1.0,
        learning_rate=1e-5,
        weight_decay=0.01,
        lr_scheduler_type="constant",
        max_grad_norm=1.0,
        per_device_train_batch_size=setting.batch,
        gradient_accumulation_steps=1,
        max_completion_length=setting.tokens,
        max_steps=setting.steps,
        gradient_checkpointing=False,
        use_cpu=True,
        bf16=False,
        report_to="none",
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
    )
    trainer = DistillationTrainer(
        model=str(folder / "student"),
        teacher_model=str(folder / "teacher"),
        args=settings,
        train_dataset=Dataset.from_list([{"prompt": line["problem"]} for line in lines]),
        processing_class=AutoTokenizer.from_pretrained(folder / "student", padding_side="left"),
        callbacks=[Step()],
    )
    trainer.train()


def ours(setting: Setting, support: str, rollout: str) -> None:
    from hydra import compose, initialize_config_dir

    from opd import cli
    from opd.check import config as check
    from opd.config.schema import CONF
    from opd.ranks import dist
    from opd.records.run_dir import RunDir
    from opd.step.assemble import assemble
    from opd.step.loop import step

    turns, folder = Turns(), Path(setting.folder)
    cli.register_resolvers()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        composed = compose("config", list(overrides(setting, support, rollout)))
    config = check.prepare(cli.resolved(composed))
    run = assemble(config, RunDir(folder / "run"), dist.start(timeout=60.0))
    turns.ready()
    for number in range(1, setting.steps + 1):
        run.seconds.clear()
        metrics = step(run, number)
        stages = {name.removeprefix("time/"): seconds for name, seconds in run.seconds.items()}
        turns.done(metrics["response/tokens"], stages)
    run.sampler.close()


def overrides(setting: Setting, support: str, rollout: str) -> Iterator[str]:
    yield from ("scale=own", f"support={support}", f"rollout={rollout}", "whitening=none", "rollout_correction=none")
    yield from (f"student.model={setting.folder}/student", f"teacher.models=[{setting.folder}/teacher]")
    yield from (f"prompts.source.file={setting.folder}/prompts.jsonl", "prompts.template=raw", "prompts.suffix=''")
    yield from ("teacher=single", "evaluate.benchmarks=[]", "samples_per_prompt=1")
    yield from (f"batch_size={setting.batch}", f"max_response_length={setting.tokens}")
    yield from (f"threads={setting.threads}", f"memory.logit_chunk={setting.logit_chunk}", "optim.grad_clip=1.0")
    if rollout == "vllm":
        yield "rollout.kv_cache_bytes=67108864"


if __name__ == "__main__":
    name, given = sys.argv[1], Setting(**json.loads(sys.argv[2]))
    if name == "trl":
        trl(given)
    else:
        ours(given, name.partition("+")[0], name.partition("+")[2] or "transformers")
