"""Ranks and their communication. The only place that reads torchrun's or SLURM's environment.

A single process runs the same code as a world of size 1. Each rank samples and scores its own prompts; the tokens'
results are then gathered, so that percentiles, whitening, counts and metrics are of the full batch on every rank. torch
is imported where it is used: `world` needs no torch.
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

# Range of rendezvous ports of SLURM jobs: two jobs on one node are unlikely to get the same one.
FIRST_PORT, NUM_PORTS = 20_000, 20_000


@dataclass(frozen=True)
class Ranks:
    """This process as one of the run's ranks. All ranks must call its methods, in the same order."""

    rank: int
    size: int
    device: "torch.device"
    grouped: bool  # models are sharded; a single rank may be a group too, for FSDP's precision and offloading
    group: Any = None  # the process group; None: torch's default

    @property
    def main(self) -> bool:
        """Whether this rank writes the records."""
        return self.rank == 0

    def concat(self, rows: "Tensor", dim: int = 0) -> "Tensor":
        """Concatenates the ranks' rows along `dim`, on the CPU; all ranks must pass equally many.

        A last dimension other than `dim` is padded on the right with 0 to the longest.
        """
        if self.size == 1:
            return rows
        import torch
        import torch.distributed as dist

        if rows.ndim > dim + 1:
            rows = torch.nn.functional.pad(rows, (0, self.max(rows.shape[-1]) - rows.shape[-1]))
        sent = (rows.to(torch.uint8) if rows.dtype == torch.bool else rows).to(self.device).contiguous()
        parts = [torch.empty_like(sent) for _ in range(self.size)]
        dist.all_gather(parts, sent, group=self.group)
        return torch.cat(parts, dim).to(rows.dtype).cpu()

    def max(self, number: int) -> int:
        """The maximum of the ranks' numbers."""
        return max(self.gather(number)) if self.size > 1 else number

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on any rank."""
        return bool(self.max(int(flag)))

    def sum(self, numbers: Mapping[str, float]) -> dict[str, float]:
        """The sums of the ranks' numbers, by name."""
        return {name: sum(each[name] for each in self.gather(dict(numbers))) for name in numbers}

    def gather(self, value: Any) -> list[Any]:
        """Every rank's value, in order of ranks; only plain data that this run produced, because torch pickles it."""
        if self.size == 1:
            return [value]
        import torch.distributed as dist

        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value, group=self.group)
        return values

    def on_main(self, action: Callable[[], Any]) -> None:
        """Runs `action` on the main rank while the others wait.

        Raises:
            what `action` raises, on the other ranks as in `on_all`.
        """

        def run() -> None:
            if self.main:
                action()

        self.on_all(run)

    def on_all(self, action: Callable[[], Any]) -> list[Any]:
        """Runs `action` on every rank and returns the results, which must be plain data, in order of ranks.

        Raises:
            what `action` raises on this rank; else what it raised on the first other rank, an `OSError` as it is,
            anything else as a `UserError`.
        """
        result, failure = None, None
        try:
            result = action()
        except BaseException as error:
            failure = error
        outcomes = self.gather((result, failure if isinstance(failure, OSError) else _message(failure)))
        if failure is not None:
            raise failure
        for _, error in outcomes:
            if error is not None:
                raise error if isinstance(error, OSError) else UserError(error)
        return [theirs for theirs, _ in outcomes]

    def with_own_group(self, *, timeout: float) -> "Ranks":
        """The same ranks on the CPU, in a process group of its own that another thread may use.

        `timeout`: seconds that a rank waits for another one.
        """
        if self.size == 1:
            return self
        import torch
        import torch.distributed as dist

        group = dist.new_group(backend="gloo", timeout=timedelta(seconds=timeout))
        return replace(self, device=torch.device("cpu"), group=group)


def _message(failure: BaseException | None) -> str | None:
    return None if failure is None else str(failure) or type(failure).__name__


def world() -> tuple[int, int, int]:
    """(rank, world size, rank on this node) from the variables of torchrun or srun; (0, 1, 0) for a single process."""
    env = os.environ
    if "RANK" in env and "WORLD_SIZE" in env:
        return int(env["RANK"]), int(env["WORLD_SIZE"]), int(env.get("LOCAL_RANK", 0))
    # A step of one task is a single process; in an allocation without srun, SLURM_PROCID is not this process's.
    if int(env.get("SLURM_STEP_NUM_TASKS", 1)) > 1:
        return int(env["SLURM_PROCID"]), int(env["SLURM_STEP_NUM_TASKS"]), int(env["SLURM_LOCALID"])
    return 0, 1, 0


def start(*, timeout: float, group: bool = False) -> Ranks:
    """Joins the other ranks. Each must arrive, and later join each collective, within `timeout` seconds.

    `group`: make a process group even for a single process.

    Raises:
        UserError: where a rank does not arrive.
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
                _set_master()
            store = None if size > 1 else dist.HashStore()  # pyright: ignore[reportPrivateImportUsage]
            dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=limit)
        except (RuntimeError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise UserError(f"rank {rank} of {size}: could not connect to the other ranks ({reason})") from error
    return Ranks(rank, size, device, grouped=size > 1 or group)


def stop() -> None:
    """Leaves the process group."""
    import torch.distributed as dist

    if dist.is_initialized():
        dist.destroy_process_group()


def _set_master() -> None:
    """Sets the rendezvous of SLURM's tasks: the first node of the step, at a port derived from the job."""
    if "MASTER_ADDR" in os.environ:
        return
    nodes = os.environ["SLURM_STEP_NODELIST"]
    hosts = subprocess.run(["scontrol", "show", "hostnames", nodes], capture_output=True, text=True, check=False)
    if hosts.returncode or not hosts.stdout.split():
        raise UserError(f"SLURM_STEP_NODELIST={nodes}: scontrol names no host; set MASTER_ADDR and MASTER_PORT")
    os.environ["MASTER_ADDR"] = hosts.stdout.split()[0]
    job = int(os.environ["SLURM_JOB_ID"]) * 31 + int(os.environ.get("SLURM_STEP_ID", 0))
    os.environ.setdefault("MASTER_PORT", str(FIRST_PORT + job % NUM_PORTS))
