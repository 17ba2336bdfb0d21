"""Tokens a second of our sampler and of transformers' `generate`: same model, prompts, settings, machine and process.

    python -m benchmarks.sampler [--hidden 64] [--layers 2] [--vocabulary 32] [--stop 0.04]
    python -m benchmarks.sampler --model DIR [--prompts FILE.jsonl]

Without `--model`, a Qwen3 with random weights that stops at each token with probability `--stop`, so that responses
have mixed lengths. With it, a model and its tokenizer, on the problems of a JSONL file ({"problem": text} a line) or on
worked arithmetic. Only tokens of responses count, for both. The two take turns; a ratio is the median over the turns.
"""

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, Qwen3Config, Qwen3ForCausalLM

from opd.data.batch import Prompt, Sampling, pad
from opd.model.sharded import Root
from opd.ranks import dist
from opd.rollout.sampler import TransformersSampler

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
    parser.add_argument("--model", type=Path)
    parser.add_argument("--prompts", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    model, prompts, stop_ids, pad_id = trained(args) if args.model else untrained(args)
    sampling = Sampling(args.samples, args.max_tokens, args.temperature, args.top_p, args.top_k)
    sampler = TransformersSampler(
        Root(model, dist.start(timeout=60)),
        stop_ids=stop_ids,
        pad_id=pad_id,
        dtype=args.dtype,
        max_batch_tokens=args.max_batch_tokens,
    )
    rows = args.generate_rows or len(prompts) * args.samples

    def ours(turn: int) -> list[int]:
        return sampler.sample(prompts, sampling, key=(turn,)).mask.sum(1).tolist()

    def theirs(turn: int) -> list[int]:
        return generate(model, prompts, sampling, stop_ids, pad_id, rows)

    compare(ours, theirs, args.turns)


def compare(ours: Callable[[int], list[int]], theirs: Callable[[int], list[int]], turns: int) -> None:
    """Prints tokens a second by the wall clock and by CPU time, and their ratios."""
    rates: dict[str, list[tuple[float, float]]] = {"sampler": [], "generate": []}
    for turn in range(-1, turns):  # the first turn warms both up
        for name, run in (("sampler", ours), ("generate", theirs)):
            wall, cpu = time.perf_counter(), time.process_time()
            lengths = run(turn)
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
            if turn >= 0:
                tokens, rows = sum(lengths), len(lengths)
                rates[name].append((tokens / wall, tokens / cpu))
                print(
                    f"{name:9} {tokens / wall:9.0f} tokens/s  {tokens / cpu:9.0f} tokens/CPU s  "
                    f"{rows} responses of {min(lengths)} to {max(lengths)} tokens, mean {tokens / rows:.1f}"
                )
    for index, clock in enumerate(("wall clock", "CPU time")):
        ratios = [ours[index] / theirs[index] for ours, theirs in zip(*rates.values(), strict=True)]
        print(f"ratio by {clock:10} median {statistics.median(ratios):.2f}, {min(ratios):.2f} to {max(ratios):.2f}")


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
    config = Qwen3Config(
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
    model = Qwen3ForCausalLM(config).eval()
    bias = torch.zeros(args.vocabulary)
    bias[1] = math.log(args.stop / (1 - args.stop) * (args.vocabulary - 1))
    model.lm_head.bias = torch.nn.Parameter(bias)
    prompts = [
        Prompt(str(index), "", "", "", tuple(torch.randint(2, args.vocabulary, (8 + index % 5,)).tolist()))
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
