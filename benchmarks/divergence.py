"""What exact divergences cost: time over the matrix products that no method can avoid, and memory.

    python -m benchmarks.divergence [--tokens 512] [--vocabulary 151936] [--width 1024] [--repeats 2] [--only memory]

Everything is measured in one process on one thread, by CPU time, and the least of `repeats` interleaved rounds counts:
ratios then hold on a busy machine too. Memory is the growth of the peak resident size of a process of its own. Liger's
fused linear JSD is measured where `liger_kernel` can be imported (`pip install --no-deps liger-kernel`).
"""

import argparse
import multiprocessing
import resource
import time
from collections.abc import Callable
from functools import partial
from multiprocessing.connection import Connection

import torch

from opd.objective import divergence, fused, support
from opd.objective.divergence import Divergence
from opd.objective.logp import backward_token_scores

DIVERGENCES = {
    "reverse_kl": divergence.reverse_kl(),
    "forward_kl": divergence.forward_kl(),
    "jeffreys": divergence.jeffreys(),
    "jensen_shannon": divergence.jensen_shannon(),
    "generalized_jensen_shannon": divergence.generalized_jensen_shannon(beta=0.1),
    "hellinger": divergence.hellinger(),
    "tsallis": divergence.tsallis(alpha=1.5),
    "alpha_divergence": divergence.alpha_divergence(alpha=0.3),
    "skew_kl": divergence.skew_kl(alpha=0.1),
    "skew_forward_kl": divergence.skew_forward_kl(alpha=0.1),
    "total_variation": divergence.total_variation(),
}
CHUNK = 256
INPUTS = ("hidden", "head", "hidden_teacher", "head_teacher")


def inputs(tokens: int, vocabulary: int, width: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    draw = partial(torch.randn, generator=generator)
    return {
        "hidden": draw(tokens, width).requires_grad_(),
        "head": draw(vocabulary, width).mul_(width**-0.5).requires_grad_(),
        "hidden_teacher": draw(tokens, width),
        "head_teacher": draw(vocabulary, width).mul_(width**-0.5),
        "sampled": torch.randint(vocabulary, (tokens,), generator=generator),
    }


def products(x: dict[str, torch.Tensor], *, teacher: bool = True) -> None:
    """The products that no method can avoid: student logits, two gradients and, for exact divergences, teacher logits.

    In chunks and into memory that is there already: a product over all tokens at once is slower.
    """
    hidden, head, hidden_teacher, head_teacher = (x[name].detach() for name in INPUTS)
    logits, grad_head = torch.empty(min(CHUNK, len(hidden)), len(head)), torch.zeros_like(head)
    for start in range(0, len(hidden), CHUNK):
        rows = slice(start, start + CHUNK)
        here = logits[: len(hidden[rows])]
        torch.mm(hidden[rows], head.T, out=here)
        torch.mm(here, head)
        grad_head.addmm_(here.T, hidden[rows])
        if teacher:
            torch.mm(hidden_teacher[rows], head_teacher.T, out=here)


def ours(x: dict[str, torch.Tensor], d: Divergence, where: support.Support | None = None) -> None:
    loss, _ = fused.exact(
        x["hidden"], x["head"], x["hidden_teacher"], x["head_teacher"], d,
        support=where, tokens=x["sampled"] if where else None, chunk_size=CHUNK,
    )  # fmt: skip
    loss.backward()


def naive(x: dict[str, torch.Tensor]) -> None:
    student = (x["hidden"] @ x["head"].T).log_softmax(-1)
    teacher = (x["hidden_teacher"] @ x["head_teacher"].T).log_softmax(-1)
    (student.exp() * (student - teacher)).sum().backward()


def liger(x: dict[str, torch.Tensor]) -> None:
    from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss  # pyright: ignore[reportMissingImports]

    loss = LigerFusedLinearJSDLoss(weight_hard_loss=0.0, weight_soft_loss=1.0, compiled=False, chunk_size=CHUNK)
    loss(*(x[name] for name in INPUTS), x["sampled"]).backward()


def sampled(x: dict[str, torch.Tensor]) -> None:
    grad = torch.ones(len(x["hidden"]))
    arguments = x["hidden"].detach(), x["head"].detach(), x["sampled"], grad, None
    backward_token_scores(*arguments, temperature=1.0, chunk_size=CHUNK)


MEASURED = {"reverse_kl": partial(ours, d=DIVERGENCES["reverse_kl"]), "naive": naive, "Liger JSD": liger}


def has_liger() -> bool:
    try:
        import liger_kernel.chunked_loss  # noqa: F401  # pyright: ignore[reportMissingImports]
    except ImportError:
        return False
    return True


def seconds(x: dict[str, torch.Tensor], function: Callable[[dict[str, torch.Tensor]], None]) -> float:
    x["hidden"].grad = x["head"].grad = None
    start = time.process_time()
    function(x)
    return time.process_time() - start


def megabytes(name: str, sizes: tuple[int, int, int]) -> float:
    """Growth of the peak resident size over the inputs, the gradients of hidden states and head included."""
    context = multiprocessing.get_context("spawn")
    ours_end, theirs = context.Pipe()
    process = context.Process(target=_grow, args=(name, sizes, theirs))
    process.start()
    theirs.close()
    try:
        return ours_end.recv()
    except EOFError:  # killed for memory
        return float("nan")
    finally:
        process.join()


def _grow(name: str, sizes: tuple[int, int, int], pipe: Connection) -> None:
    torch.set_num_threads(1)
    function = MEASURED[name]
    x = inputs(*sizes)
    tiny = inputs(2, 8, 4)
    function(tiny)  # what the first call loads is not what a call needs
    with open("/proc/self/statm") as file:
        resident = int(file.read().split()[1]) * resource.getpagesize()
    function(x)
    pipe.send(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 - resident / 2**20)


def time_table(x: dict[str, torch.Tensor], repeats: int) -> None:
    arms: dict[str, Callable[[dict[str, torch.Tensor]], None]] = {
        "four products": products,
        **{name: partial(ours, d=d) for name, d in DIVERGENCES.items()},
        "reverse_kl, top 64 + bucket": partial(
            ours, d=DIVERGENCES["reverse_kl"], where=support.topk(k=64, of="teacher", tail="bucket")
        ),
        "naive reverse KL": naive,
        **({"Liger JSD": liger} if has_liger() else {}),
        "three products": partial(products, teacher=False),
        "sampled tokens": sampled,
    }
    best = dict.fromkeys(arms, float("inf"))
    for _ in range(repeats):
        for name, function in arms.items():
            best[name] = min(best[name], seconds(x, function))
    print(f"{'forward + backward':<30}{'CPU s':>8}{'/ products':>12}{'/ reverse_kl':>14}")
    for name, took in best.items():
        base = best["three products" if name in ("three products", "sampled tokens") else "four products"]
        print(f"{name:<30}{took:>8.2f}{took / base:>12.3f}{took / best['reverse_kl']:>14.3f}")
    if not has_liger():
        print("Liger: not installed")


def memory_table(sizes: tuple[int, int, int], longest: int) -> None:
    tokens, vocabulary, width = sizes
    chunk, grad_head = CHUNK * vocabulary * 4 / 2**20, vocabulary * width * 4 / 2**20
    print(f"\nmemory: one chunk {chunk:.0f} MB, the head's gradient {grad_head:.0f} MB")
    print(f"{'':<14}{'tokens':>8}{'width':>8}{'MB':>10}{'less gradients':>16}{'in chunks':>12}")
    arms = [name for name in MEASURED if name != "Liger JSD" or has_liger()]
    # The sweep over tokens uses narrow heads: what grows with tokens does not depend on the width.
    cases = [(name, tokens, width) for name in arms]
    cases += [("reverse_kl", count, 64) for count in (512, 2048, longest)] + [("naive", 512, 64), ("naive", 2048, 64)]
    for name, count, wide in cases:
        found = megabytes(name, (count, vocabulary, wide))
        rest = found - (vocabulary + count) * wide * 4 / 2**20
        print(f"{name:<14}{count:>8}{wide:>8}{found:>10.0f}{rest:>16.0f}{rest / chunk:>12.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--vocabulary", type=int, default=151_936)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--longest", type=int, default=8192, help="tokens of the longest memory measurement")
    parser.add_argument("--only", choices=["time", "memory"])
    options = parser.parse_args()
    torch.set_num_threads(1)
    sizes = options.tokens, options.vocabulary, options.width
    print(f"{options.tokens} tokens, vocabulary {options.vocabulary}, heads {options.width} wide, float32, one thread")
    if options.only != "memory":
        time_table(inputs(*sizes), options.repeats)
    if options.only != "time":
        memory_table(sizes, options.longest)


if __name__ == "__main__":
    main()
