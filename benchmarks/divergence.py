"""What exact divergences and sampled tokens cost: time over the matrix products that no method can avoid, and memory.

    python -m benchmarks.divergence [--tokens 256] [--repeats 5] [--only time|memory] [--device cuda --dtype bfloat16]

On a CPU everything runs in one thread and is timed by CPU time, in interleaved rounds: a ratio is the median over the
rounds of two times of one round, so that it holds on a machine whose speed drifts. Memory is the growth of the peak
resident size (on CUDA: of what is allocated) during one call, in a process of its own on a CPU. Targets are those of
float32 on a CPU. Liger's fused linear JSD is measured where `liger_kernel` can be imported (`pip install --no-deps
liger-kernel` is enough on a CPU), compiled where there is a compiler, as it is by default; compiling does not count.
"""

import argparse
import gc
import multiprocessing
import os
import random
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from statistics import median

import torch

from opd.objective import divergence, fused, support
from opd.objective.divergence import Divergence
from opd.objective.logp import backward_token_scores, token_scores

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
INPUTS = ("hidden", "head", "hidden_teacher", "head_teacher")
FOUR, THREE = "four products", "three products"
LIGER = "Liger JSD"


@dataclass(frozen=True)
class Setting:
    """What is measured: sizes, where, and in which precision."""

    tokens: int
    vocabulary: int
    width: int
    chunk: int
    device: str
    dtype: str

    @property
    def cuda(self) -> bool:
        return self.device.startswith("cuda")


@dataclass
class Case:
    """Inputs, and the chunk size. The same numbers every time."""

    x: dict[str, torch.Tensor]
    chunk: int

    @classmethod
    def make(cls, setting: Setting) -> "Case":
        generator = torch.Generator(setting.device).manual_seed(0)
        kind = {"device": setting.device, "dtype": getattr(torch, setting.dtype)}
        hidden = partial(torch.randn, setting.tokens, setting.width, generator=generator, **kind)
        head = partial(torch.randn, setting.vocabulary, setting.width, generator=generator, **kind)
        x = {"hidden": hidden(), "head": head(), "hidden_teacher": hidden(), "head_teacher": head()}
        for name in ("head", "head_teacher"):
            x[name].mul_(setting.width**-0.5)
        for name in ("hidden", "head"):
            x[name].requires_grad_()
        sampled = torch.randint(setting.vocabulary, (setting.tokens,), generator=generator, device=setting.device)
        return cls({**x, "sampled": sampled}, setting.chunk)


Arm = Callable[[Case], None]


def products(case: Case, *, fourth: bool) -> None:
    """Logits, the gradients of hidden states and head, and, where `fourth`, logits once more.

    In chunks and into memory that is there already: a product over all tokens at once is slower.
    """
    hidden, head, hidden_teacher, head_teacher = (case.x[name].detach() for name in INPUTS)
    logits, grad_head = head.new_empty(min(case.chunk, len(hidden)), len(head)), torch.zeros_like(head)
    for start in range(0, len(hidden), case.chunk):
        rows = slice(start, start + case.chunk)
        here = logits[: len(hidden[rows])]
        torch.mm(hidden[rows], head.T, out=here)
        torch.mm(here, head)
        grad_head.addmm_(here.T, hidden[rows])
        if fourth:
            torch.mm(hidden_teacher[rows], head_teacher.T, out=here)


def ours(case: Case, d: Divergence, where: support.Support | None = None) -> None:
    tokens = case.x["sampled"] if where else None
    teacher = case.x["hidden_teacher"], case.x["head_teacher"]
    options = {"support": where, "tokens": tokens, "chunk_size": case.chunk}
    fused.exact(case.x["hidden"], case.x["head"], *teacher, d, **options)[0].backward()


def naive(case: Case) -> None:
    student = (case.x["hidden"] @ case.x["head"].T).float().log_softmax(-1)
    teacher = (case.x["hidden_teacher"] @ case.x["head_teacher"].T).float().log_softmax(-1)
    (student.exp() * (student - teacher)).sum().backward()


def liger(case: Case) -> None:
    from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss  # pyright: ignore[reportMissingImports]

    options = {"weight_hard_loss": 0.0, "weight_soft_loss": 1.0, "chunk_size": case.chunk}
    compiled = case.x["head"].is_cuda or shutil.which("g++") is not None
    loss = LigerFusedLinearJSDLoss(**options, compiled=compiled)
    loss(*(case.x[name] for name in INPUTS), case.x["sampled"]).backward()


def sampled(case: Case, *, score: bool) -> None:
    arguments = case.x["hidden"].detach(), case.x["head"].detach(), case.x["sampled"]
    options = {"temperature": 1.0, "chunk_size": case.chunk}
    if score:
        token_scores(*arguments, **options)
    backward_token_scores(*arguments, torch.ones_like(arguments[0][:, 0]), None, **options)


MEASURED: dict[str, Arm] = {"reverse_kl": partial(ours, d=DIVERGENCES["reverse_kl"]), "naive": naive, LIGER: liger}


def liger_missing() -> str | None:
    """Why Liger is not measured, null where it is."""
    try:
        from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss  # noqa: F401  # pyright: ignore[reportMissingImports]
    except Exception as error:  # a package built for GPUs may fail in its own ways
        return f"cannot be imported ({type(error).__name__}: {error})"
    return None


def verdict(figure: float, target: float, cuda: bool) -> str:
    if cuda:
        return ""
    return f"{f'<= {target:.2f}':>12}  {'met' if figure <= target else 'MISSED'}"


def seconds(case: Case, arm: Arm, cuda: bool) -> float:
    case.x["hidden"].grad = case.x["head"].grad = None
    gc.collect()
    clock = time.perf_counter if cuda else time.process_time
    wait = torch.cuda.synchronize if cuda else lambda: None
    wait()
    start = clock()
    arm(case)
    wait()
    return clock() - start


def time_table(setting: Setting, repeats: int) -> None:
    case, missing, cuda = Case.make(setting), liger_missing(), setting.cuda
    bucket = support.topk(k=64, of="teacher", tail="bucket")
    bases: dict[str, Arm] = {
        FOUR: partial(products, fourth=True),
        THREE: partial(products, fourth=False),
        "reverse_kl": MEASURED["reverse_kl"],
    }
    judged: dict[str, Arm] = {
        **{name: partial(ours, d=d) for name, d in DIVERGENCES.items() if name != "reverse_kl"},
        **({} if missing else {LIGER: liger}),
        "sampled: backward": partial(sampled, score=False),
        "sampled: scores + backward": partial(sampled, score=True),
    }
    once: dict[str, Arm] = {"reverse_kl, top 64 + bucket": partial(ours, d=DIVERGENCES["reverse_kl"], where=bucket)}
    once["naive reverse KL"] = naive
    warm = [*bases.values(), *judged.values(), *once.values()] if cuda else [judged[LIGER]] if not missing else []
    for arm in warm:
        seconds(case, arm, cuda)
    arms = bases | judged | once
    shuffled = random.Random(0)  # no arm keeps its place in the round
    rounds = [
        {name: seconds(case, arms[name], cuda) for name in shuffled.sample(list(arms), len(arms))}
        for _ in range(repeats)
    ]
    middle = {name: median(each[name] for each in rounds) for name in arms}

    print(f"\n{'forward + backward':<38}{'s' if cuda else 'CPU s':>8}{'ratio':>9} {'to':<16}{'target':>10}")
    print(f"{FOUR:<38}{middle[FOUR]:>8.3f}\n{THREE:<38}{middle[THREE]:>8.3f}")

    def row(name: str, base: str, target: float | None) -> None:
        ratio = median(each[name] / each[base] for each in rounds)
        judgement = "" if target is None else verdict(ratio, target, cuda)
        print(f"{name:<38}{middle[name]:>8.3f}{ratio:>9.3f} {base:<16}{judgement}")

    row("reverse_kl", FOUR, 1.15)
    for name in DIVERGENCES:
        if name != "reverse_kl":
            row(name, "reverse_kl", 1.10)
    row("reverse_kl, top 64 + bucket", "reverse_kl", None)
    row("naive reverse KL", "reverse_kl", None)
    row("sampled: backward", THREE, 1.05)
    row("sampled: scores + backward", FOUR, 1.05)
    if missing:
        print(f"{LIGER}: {missing}")
    else:
        print(f"{LIGER:<38}{middle[LIGER]:>8.3f}")
        row("jensen_shannon", LIGER, 1.0)


def megabytes(name: str, setting: Setting) -> float:
    """Growth of the peak over the inputs, the gradients of hidden states and head included; NaN where it was killed."""
    if setting.cuda:
        return _grown_cuda(MEASURED[name], setting)
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_grow, args=(name, setting, there))
    process.start()
    there.close()
    try:
        return here.recv()
    except EOFError:
        return float("nan")
    finally:
        process.join()


def _grown_cuda(arm: Arm, setting: Setting) -> float:
    case = Case.make(setting)
    seconds(case, arm, True)
    case.x["hidden"].grad = case.x["head"].grad = None
    gc.collect()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    arm(case)
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def _grow(name: str, setting: Setting, pipe: Connection) -> None:
    torch.set_num_threads(1)
    case = Case.make(setting)
    # What the first call loads is not what a call needs; what is compiled is compiled for a size.
    tiny = Setting(2, 8, 4, 2, setting.device, setting.dtype)
    seconds(case if name == LIGER else Case.make(tiny), MEASURED[name], False)
    case.x["hidden"].grad = case.x["head"].grad = None
    gc.collect()
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # the peak begins anew
    before = _resident("VmRSS")
    MEASURED[name](case)
    pipe.send(_resident("VmHWM") - before)


def _resident(field: str) -> float:
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) / 1024 for line in file if line.startswith(field))


def memory_table(setting: Setting, tokens: int, longest: int) -> None:
    vocabulary, width, cuda = setting.vocabulary, setting.width, setting.cuda
    chunk = setting.chunk * vocabulary * 4 / 2**20
    # The head's gradient is kept in float32, and for heads of lower precision copied to theirs at the end.
    size = 4 + (0 if setting.dtype == "float32" else getattr(torch, setting.dtype).itemsize)
    print(f"\nmemory: one chunk {chunk:.0f} MB, the head's gradient {vocabulary * width * size / 2**20:.0f} MB")
    print(f"{'':<14}{'tokens':>8}{'width':>8}{'MB':>9}{'less gradients':>16}{'in chunks':>11}  {'target':>10}")

    def gradients(count: int, wide: int) -> float:
        return (vocabulary + count) * wide * size / 2**20

    def row(name: str, count: int, wide: int, target: float | None = None) -> float:
        found = megabytes(name, Setting(count, vocabulary, wide, setting.chunk, setting.device, setting.dtype))
        rest = found - gradients(count, wide)
        # Two chunks, and 0.1 of one for what is small: row by row temporaries, a number a token.
        judgement = "" if target is None else verdict(rest / chunk, target, cuda)
        print(f"{name:<14}{count:>8}{wide:>8}{found:>9.0f}{rest:>16.0f}{rest / chunk:>11.2f}{judgement}", flush=True)
        return found

    mine, missing = row("reverse_kl", tokens, width, 2.1), liger_missing()
    plain = row("naive", tokens, width)
    if missing:
        print(f"{LIGER}: {missing}")
    else:
        theirs = row(LIGER, tokens, width)
        print(f"{'reverse_kl to ' + LIGER:<46}{mine / theirs:>20.3f}{verdict(mine / theirs, 1.0, cuda)}")
    # Narrow heads for the long ones: what grows with tokens does not depend on the width.
    for count in (512, 2048, longest):
        row("reverse_kl", count, 64, 2.1)
        # The naive form peaks before the gradients of the heads are there.
        rest = plain * count / tokens
        print(f"{'naive':<14}{count:>8}{64:>8}{rest:>9.0f}{'':>16}{rest / chunk:>11.2f}", end="")
        print(f"  not run: computed from {tokens} tokens")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, help="of the timed calls; 256, and 8192 on CUDA")
    parser.add_argument("--vocabulary", type=int, default=151_936)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--chunk", type=int, help="256, and 1024 on CUDA")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--longest", type=int, default=8192, help="tokens of the longest memory measurement")
    parser.add_argument("--only", choices=["time", "memory"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    options = parser.parse_args()
    torch.set_num_threads(1)
    cuda = options.device.startswith("cuda")
    if cuda and not torch.cuda.is_available():
        parser.error("torch sees no CUDA device here")
    tokens, chunk = options.tokens or (8192 if cuda else 256), options.chunk or (1024 if cuda else 256)
    setting = Setting(tokens, options.vocabulary, options.width, chunk, options.device, options.dtype)
    where = torch.cuda.get_device_name() if cuda else "one CPU thread"
    print(
        f"{tokens} tokens in chunks of {chunk}, vocabulary {setting.vocabulary}, heads {setting.width} wide, ", end=""
    )
    print(f"{setting.dtype}, {where}")
    started = time.perf_counter()
    if options.only != "memory":
        time_table(setting, options.repeats)
    if options.only != "time":
        memory_table(setting, max(tokens, 2 * chunk), options.longest)
    print(
        f"\n{(time.perf_counter() - started) / 60:.1f} minutes; load {os.getloadavg()[1]:.1f} on {os.cpu_count()} cores"
    )
    print("(times are rough where the load exceeds the cores)")


if __name__ == "__main__":
    main()
