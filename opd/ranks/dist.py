"""Ranks: who they are and what they tell each other. The one place that reads torchrun's or SLURM's environment.

A single process is a world of one through the same code. Each rank samples and scores its own prompts; what was found
of every token is then joined, so that percentiles, whitening, counts and metrics are the whole batch's on every rank.
torch is imported where it is used: who we are is known without it.
"""

import os
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from opd.errors import UserError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

# Ports that SLURM jobs meet at: two jobs of one node seldom share one.
FIRST_PORT, NUM_PORTS = 20_000, 20_000


@dataclass(frozen=True)
class Ranks:
    """This process among those of the run. All ranks must call its methods, in the same order."""

    rank: int
    size: int
    device: "torch.device"
    grouped: bool  # models are sharded; one rank may be a group too, for FSDP's precision and offloading
    group: Any = None  # of torch's process groups, the one that these talk in; None: the first

    @property
    def main(self) -> bool:
        """Whether this rank writes the records."""
        return self.rank == 0

    def join(self, rows: "Tensor", dim: int = 0) -> "Tensor":
        """The ranks' rows one after another along `dim`, on the CPU; every rank gives as many.

        A last dimension beside `dim` is padded on the right, with 0, to the longest.
        """
        if self.size == 1:
            return rows
        import torch
        import torch.distributed as dist

        if rows.ndim > dim + 1:
            rows = torch.nn.functional.pad(rows, (0, self.most(rows.shape[-1]) - rows.shape[-1]))
        sent = (rows.to(torch.uint8) if rows.dtype == torch.bool else rows).to(self.device).contiguous()
        parts = [torch.empty_like(sent) for _ in range(self.size)]
        dist.all_gather(parts, sent, group=self.group)
        return torch.cat(parts, dim).to(rows.dtype).cpu()

    def most(self, number: int) -> int:
        """The largest of the ranks' numbers."""
        return max(self.collect(number)) if self.size > 1 else number

    def any(self, flag: bool) -> bool:
        """Whether any rank says so."""
        return bool(self.most(int(flag)))

    def total(self, numbers: Mapping[str, float]) -> dict[str, float]:
        """The sums of the ranks' numbers, by name."""
        return {name: sum(each[name] for each in self.collect(dict(numbers))) for name in numbers}

    def collect(self, thing: Any) -> list[Any]:
        """Every rank's thing, in order of ranks; plain data that this run itself made."""
        if self.size == 1:
            return [thing]
        import torch.distributed as dist

        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, thing, group=self.group)
        return found

    def lead(self, action: Callable[[], Any]) -> None:
        """The main rank does it while the others wait.

        Raises:
            what `action` raises, on the other ranks as `together` says.
        """

        def led() -> None:
            if self.main:
                action()

        self.together(led)

    def together(self, action: Callable[[], Any]) -> list[Any]:
        """Every rank does it; what each found, in order of ranks: plain data.

        Raises:
            what `action` raises; where it raises on other ranks alone, what the first of them met: an `OSError` as it
            is, anything else as a `UserError`.
        """
        found, failure = None, None
        try:
            found = action()
        except BaseException as error:
            failure = error
        all_of_it = self.collect((found, failure if isinstance(failure, OSError) else _said(failure)))
        if failure is not None:
            raise failure
        for _, met in all_of_it:
            if met is not None:
                raise met if isinstance(met, OSError) else UserError(met)
        return [theirs for theirs, _ in all_of_it]

    def apart(self, *, timeout: float) -> "Ranks":
        """The same ranks on the CPU, in a group of their own: what they say there crosses nothing that is said here.

        `timeout`: seconds for which one waits for another.
        """
        if self.size == 1:
            return self
        import torch
        import torch.distributed as dist

        group = dist.new_group(backend="gloo", timeout=timedelta(seconds=timeout))
        return replace(self, device=torch.device("cpu"), group=group)


def _said(failure: BaseException | None) -> str | None:
    return None if failure is None else str(failure) or type(failure).__name__


def world() -> tuple[int, int, int]:
    """(rank, world size, rank on this node), as torchrun or SLURM's srun says; (0, 1, 0) for a single process."""
    env = os.environ
    if "RANK" in env and "WORLD_SIZE" in env:
        return int(env["RANK"]), int(env["WORLD_SIZE"]), int(env.get("LOCAL_RANK", 0))
    # A step of one task is a single process, and an allocation without srun has no SLURM_PROCID of its own.
    if int(env.get("SLURM_STEP_NUM_TASKS", 1)) > 1:
        return int(env["SLURM_PROCID"]), int(env["SLURM_STEP_NUM_TASKS"]), int(env["SLURM_LOCALID"])
    return 0, 1, 0


def start(*, timeout: float, group: bool = False) -> Ranks:
    """Joins the other ranks, which must come, and answer from then on, within `timeout` seconds.

    `group`: a single process is a group too.

    Raises:
        UserError: where they do not.
    """
    import torch
    import torch.distributed as dist

    rank, size, local = world()
    cuda = torch.cuda.is_available()
    device = torch.device("cuda", local) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    if (size > 1 or group) and not dist.is_initialized():
        backend, limit = "cpu:gloo,cuda:nccl" if cuda else "gloo", timedelta(seconds=timeout)
        try:
            if size > 1:
                _meet()
            store = None if size > 1 else dist.HashStore()  # pyright: ignore[reportPrivateImportUsage]
            dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=limit)
        except (RuntimeError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise UserError(f"rank {rank} of {size}: the ranks did not find each other ({reason})") from error
    return Ranks(rank, size, device, grouped=size > 1 or group)


def stop() -> None:
    """Leaves the other ranks."""
    import torch.distributed as dist

    if dist.is_initialized():
        dist.destroy_process_group()


def _meet() -> None:
    """Sets where SLURM's tasks meet: the first node of the step, at a port of the job's own."""
    if "MASTER_ADDR" in os.environ:
        return
    nodes = os.environ["SLURM_STEP_NODELIST"]
    found = subprocess.run(["scontrol", "show", "hostnames", nodes], capture_output=True, text=True, check=False)
    if found.returncode or not found.stdout.split():
        raise UserError(f"SLURM_STEP_NODELIST={nodes}: scontrol names no host; set MASTER_ADDR and MASTER_PORT")
    os.environ["MASTER_ADDR"] = found.stdout.split()[0]
    job = int(os.environ["SLURM_JOB_ID"]) * 31 + int(os.environ.get("SLURM_STEP_ID", 0))
    os.environ.setdefault("MASTER_PORT", str(FIRST_PORT + job % NUM_PORTS))
