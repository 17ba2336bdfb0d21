"""Tokens a second of our sampler, its parts, and transformers: same model, prompts, settings, machine and process.

    python -m benchmarks.sampler [--hidden 64] [--layers 2] [--vocabulary 32] [--stop 0.04]
    python -m benchmarks.sampler --shape Qwen/Qwen3-0.6B --prompts-num 4 --samples 4 --turns 3
    python -m benchmarks.sampler --model DIR [--prompts FILE.jsonl]

Without `--model`, a Qwen3 with random weights, of a published shape with `--shape`, that stops at each token with
probability `--stop`, so that responses have mixed lengths. With it, a model and its tokenizer, on the problems of a
JSONL file ({"problem": text} a line) or on worked arithmetic. Only tokens of responses count. All take turns; a ratio
is the median over the turns, of our sampler's rate to the other's:

    unfused      our sampler without its fused forward
    unshared     our sampler with each sample a prompt of its own, so that no common prefix is computed once
    generation   our sampler's way for other families, by `generate` with our own draws
    generate     transformers' `generate`
    paged        transformers' continuous batching, `generate_batch`
"""

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    ContinuousBatchingConfig,
    GenerationConfig,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from opd.data.batch import Prompt, Sampling, pad
from opd.model.shapes import published
from opd.model.sharded import Root
from opd.ranks import dist
from opd.rollout.continuous import ContinuousBatch
from opd.rollout.generation import Generation
from opd.rollout.sampler import TransformersSampler
from opd.rollout.ways import Way

ENGINES = ("unfused", "unshared", "generation", "generate", "paged")
ARITHMETIC = {"addition": [2, 3], "subtraction": [2, 3], "multiplication": [2, 3], "chain": [3, 4, 5]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in {"hidden": 64, "layers": 2, "vocabulary": 32, "prompts-num": 32, "samples": 8}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    for name, default in {"max-tokens": 60, "top-k": 0, "turns": 5, "threads": 1, "max-batch-tokens": 65_536}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    for name, default in {"stop": 0.04, "temperature": 1.0, "top-p": 1.0}.items():
        parser.add_argument(f"--{name}", type=float, default=default)
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "int8"], default="float32", help="of our sampler")
    parser.add_argument("--generate-rows", type=int, default=0, help="rows of one call of generate; 0 is all of them")
    parser.add_argument(
        "--engines", nargs="*", choices=ENGINES, default=ENGINES, help="what our sampler is compared with"
    )
    parser.add_argument("--shape", help="a published model whose shape the random weights have")
    parser.add_argument("--model", type=Path)
    parser.add_argument("--prompts", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    model, prompts, stop_ids, pad_id = trained(args) if args.model else untrained(args)
    sampling = Sampling(args.samples, args.max_tokens, args.temperature, args.top_p, args.top_k)
    knobs: dict[str, Any] = {"stop_ids": stop_ids, "pad_id": pad_id, "max_batch_tokens": args.max_batch_tokens}

    def sampler(way: Way | None = None) -> TransformersSampler:
        made = TransformersSampler(Root(model, dist.start(timeout=60)), dtype=args.dtype, **knobs)
        made.way = way or made.way
        return made

    def ours(
        sampler: TransformersSampler, turn: int, given: list[Prompt] = prompts, like: Sampling = sampling
    ) -> list[int]:
        return sampler.sample(given, like, key=(turn,)).mask.sum(1).tolist()

    apart = [replace(prompt, id=f"{prompt.id}/{sample}") for prompt in prompts for sample in range(args.samples)]
    rows = args.generate_rows or len(prompts) * args.samples
    engines: dict[str, Callable[[int], list[int]]] = {
        "unfused": partial(ours, sampler(Way(partial(ContinuousBatch, fused=False, pool=None)))),
        "unshared": partial(ours, sampler(), given=apart, like=replace(sampling, num_samples=1)),
        "generation": partial(ours, sampler(Way(partial(Generation, cached=True)))),
        "generate": lambda turn: generate(model, prompts, sampling, stop_ids, pad_id, rows),
        "paged": lambda turn: paged(model, prompts, sampling, stop_ids, pad_id),
    }
    compare({"sampler": partial(ours, sampler())} | {name: engines[name] for name in args.engines}, args.turns)


def compare(engines: Mapping[str, Callable[[int], list[int]]], turns: int) -> None:
    """Prints tokens a second by the wall clock and by CPU time, and the ratio of the first to each other one."""
    rates: dict[str, list[tuple[float, float]]] = {name: [] for name in engines}
    for turn in range(-1, turns):  # the first turn warms all up
        for name, run in engines.items():
            wall, cpu = time.perf_counter(), time.process_time()
            lengths = run(turn)
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
            if turn >= 0:
                tokens, rows = sum(lengths), len(lengths)
                rates[name].append((tokens / wall, tokens / cpu))
                print(
                    f"{name:10} {tokens / wall:9.0f} tokens/s  {tokens / cpu:9.0f} tokens/CPU s  "
                    f"{rows} responses of {min(lengths)} to {max(lengths)} tokens, mean {tokens / rows:.1f}"
                )
    first, *others = rates
    for name in others:
        for index, clock in enumerate(("wall clock", "CPU time")):
            ratios = [ours[index] / theirs[index] for ours, theirs in zip(rates[first], rates[name], strict=True)]
            print(
                f"{first} / {name:10} by {clock:10} median {statistics.median(ratios):.2f}, "
                f"{min(ratios):.2f} to {max(ratios):.2f}"
            )


def paged(
    model: PreTrainedModel, prompts: list[Prompt], sampling: Sampling, stop_ids: list[int], pad_id: int
) -> list[int]:
    """Response lengths of transformers' continuous batching, with log-probs and room for all rows at once."""
    rows = [list(prompt.token_ids) for prompt in prompts for _ in range(sampling.num_samples)]
    longest = max(map(len, rows)) + sampling.max_tokens
    pages = 16
    how = {name: getattr(sampling, name) for name in ("temperature", "top_p", "top_k")} if sampling.temperature else {}
    chosen: Any = model.config._attn_implementation
    found = model.generate_batch(  # pyright: ignore
        rows,
        generation_config=GenerationConfig(
            max_new_tokens=sampling.max_tokens,
            eos_token_id=stop_ids,
            pad_token_id=pad_id,
            do_sample=sampling.temperature > 0,
            **how,
        ),
        continuous_batching_config=ContinuousBatchingConfig(
            page_size=pages,
            num_blocks=len(rows) * -(-longest // pages) + 1,
            max_batch_tokens=sum(map(len, rows)),
            return_logprobs=True,
        ),
    )
    model.set_attn_implementation(chosen)
    return [len(each.generated_tokens) for each in found.values()]


def generate(
    model: PreTrainedModel, prompts: list[Prompt], sampling: Sampling, stop_ids: list[int], pad_id: int, rows: int
) -> list[int]:
    """Response lengths of `generate`, `rows` at a time."""
    lengths = []
    size = max(1, rows // sampling.num_samples)
    how: dict[str, Any] = {"do_sample": False}
    if sampling.temperature:
        how = {"do_sample": True} | {name: getattr(sampling, name) for name in ("temperature", "top_p", "top_k")}
    for start in range(0, len(prompts), size):
        tokens, mask = pad([list(prompt.token_ids) for prompt in prompts[start : start + size]], pad_id, "left")
        found = model.generate(  # pyright: ignore
            tokens,
            attention_mask=mask.long(),
            num_return_sequences=sampling.num_samples,
            max_new_tokens=sampling.max_tokens,
            eos_token_id=stop_ids,
            pad_token_id=pad_id,
            **how,
        )[:, tokens.shape[1] :]
        stop = torch.isin(found, torch.tensor(stop_ids))
        lengths += (stop.cumsum(1) - stop.long() == 0).sum(1).tolist()
    return lengths


def untrained(args: argparse.Namespace) -> tuple[PreTrainedModel, list[Prompt], list[int], int]:
    """Nearly uniform next tokens, but for the stop token: a bias on its logit sets how likely it is."""
    config: Any = (
        published(args.shape)
        if args.shape
        else Qwen3Config(
            vocab_size=args.vocabulary,
            hidden_size=args.hidden,
            intermediate_size=3 * args.hidden,
            num_hidden_layers=args.layers,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=args.hidden // 4,
            max_position_embeddings=64 + args.max_tokens,
            tie_word_embeddings=False,
            bos_token_id=None,
            eos_token_id=1,
            pad_token_id=0,
        )
    )
    model, vocabulary = Qwen3ForCausalLM(config).eval(), config.vocab_size
    bias = torch.zeros(vocabulary)
    bias[1] = math.log(args.stop / (1 - args.stop) * (vocabulary - 1))
    model.lm_head.bias = torch.nn.Parameter(bias)
    prompts = [
        Prompt(str(index), "", "", "", tuple(torch.randint(2, vocabulary, (8 + index % 5,)).tolist()))
        for index in range(args.prompts_num)
    ]
    return model, prompts, [1], 0


def trained(args: argparse.Namespace) -> tuple[PreTrainedModel, list[Prompt], list[int], int]:
    """A model of a directory, and problems as it was trained to read them."""
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    if args.prompts is None:
        from opd.data.tasks import load

        texts = [each.problem for each in load("test", num=args.prompts_num, seed=0, mix=ARITHMETIC)]  # pyright: ignore
    else:
        lines = args.prompts.read_text().splitlines()[: args.prompts_num]
        texts = [json.loads(line)["problem"] for line in lines]
    prompts = [Prompt(str(index), text, "", "", tuple(tokenizer(text).input_ids)) for index, text in enumerate(texts)]
    pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    return model, prompts, [tokenizer.eos_token_id], pad_id


if __name__ == "__main__":
    main()
