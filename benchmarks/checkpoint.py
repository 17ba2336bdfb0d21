"""A checkpoint over ranks: how long training waits for it, how long it is written, and what each rank's host holds.

    python -m benchmarks.checkpoint [--ranks 1 2 4 --width 1024 --layers 8 --vocabulary 32000]

A Qwen3 with random weights and AdamW's moments, in float32, sharded by FSDP2 over gloo on this machine. "waits": until
the copies are taken and training may go on. "holds": what a rank's memory grows by meanwhile, of the rank that holds
most, with the one tensor that is on its way; one rank's line is what gathering on rank 0 would hold.
"""

import argparse
import os
import tempfile
import time
from pathlib import Path

import torch
import torch.multiprocessing as multiprocessing
from transformers import Qwen3Config, Qwen3ForCausalLM
from transformers.utils.logging import disable_progress_bar

from opd.checkpoint import store as checkpoint
from opd.checkpoint.steps import Progress
from opd.checkpoint.store import Learned
from opd.config.schema import Compute, Optim
from opd.model.optim import Optimizer
from opd.model.sharded import shard
from opd.ranks import dist
from opd.recipes.tokenizer import build_tokenizer
from opd.watch.throughput import peak_memory

PLAIN = Compute(
    dtype="float32", attention=None, activation_checkpointing=False, offload=False, compile=False, rank_timeout=600.0
)
OPTIM = Optim(
    lr=1e-4, schedule="constant", warmup_steps=0, betas=[0.9, 0.95], eps=1e-8, weight_decay=0.0, grad_clip=1.0
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--vocabulary", type=int, default=32_000)
    args = parser.parse_args()
    print("ranks   checkpoint   waits   written   read   holds", flush=True)
    for port, size in enumerate(args.ranks, start=29_650):
        with tempfile.TemporaryDirectory() as scratch:
            multiprocessing.spawn(work, (size, port, Path(scratch), args), nprocs=size)  # pyright: ignore
            found = [torch.load(Path(scratch) / f"{rank}.pt", weights_only=True) for rank in range(size)]
            written = sum(file.stat().st_size for file in Path(scratch).glob("step_000001/*.safetensors"))
        waits, writes, reads, holds = (max(values) for values in zip(*found, strict=True))
        print(
            f"{size:5}   {written / 1e6:7,.0f} MB   {waits:4.1f} s   {writes:5.1f} s   {reads:3.1f} s   "
            f"{holds / 1e6:,.0f} MB",
            flush=True,
        )


def work(rank: int, size: int, port: int, folder: Path, args: argparse.Namespace) -> None:
    os.environ.update(
        RANK=str(rank), WORLD_SIZE=str(size), LOCAL_RANK=str(rank), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)
    )
    torch.set_num_threads(1)
    disable_progress_bar()
    ranks = dist.start(timeout=600.0, group=True)
    config = Qwen3Config(
        vocab_size=args.vocabulary,
        hidden_size=args.width,
        intermediate_size=3 * args.width,
        num_hidden_layers=args.layers,
        num_attention_heads=args.width // 64,
        num_key_value_heads=args.width // 128,
        head_dim=64,
        tie_word_embeddings=True,
    )
    model = Qwen3ForCausalLM(config)
    shard(model, ranks, PLAIN, learns=True)
    optimizer = Optimizer(model, OPTIM, num_steps=2)
    for parameter in optimizer.parameters:  # moments are made by a step; which does not matter here
        parameter.grad = torch.ones_like(parameter)
    optimizer.step(1)
    learned = Learned(model, "base", build_tokenizer(), optimizer)

    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before, started = peak_memory(ranks.device), time.perf_counter()
    write = checkpoint.resumable(learned, Progress(1, None, None), ranks)
    copied, held = time.perf_counter(), peak_memory(ranks.device) - before
    write(folder / "step_000001", ranks)
    written = time.perf_counter()
    checkpoint.load(folder / "step_000001", learned)
    read = time.perf_counter()
    torch.save((copied - started, written - copied, read - written, float(held)), folder / f"{rank}.pt")
    dist.stop()


if __name__ == "__main__":
    main()
