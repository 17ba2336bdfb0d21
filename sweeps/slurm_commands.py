"""SLURM's own commands, and submitit to write and submit the script of a job array."""

import io
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from contextlib import redirect_stderr, suppress
from pathlib import Path
from typing import Any

from opd.errors import UserError
from sweeps.executor import Unavailable
from sweeps.run_state import Job

# What SLURM's states mean; any other is that of a job that has ended.
_PHASES = {
    "waiting": "PENDING REQUEUED REQUEUE_HOLD REQUEUE_FED SPECIAL_EXIT RESV_DEL_HOLD",
    "active": "RUNNING COMPLETING CONFIGURING SUSPENDED STOPPED RESIZING SIGNALING STAGE_OUT",
    "cancelled": "CANCELLED",
    "timeout": "TIMEOUT DEADLINE",
}
_PHASE_OF: dict[str, Any] = {state: phase for phase, states in _PHASES.items() for state in states.split()}


def ask(*command: str, timeout: float = 30.0) -> str:
    """Run one of SLURM's commands; its output.

    Raises:
        Unavailable: where it is missing, fails or takes longer than `timeout` seconds.
    """
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)
    except FileNotFoundError:
        raise Unavailable(f"{command[0]} is not installed here") from None
    except subprocess.TimeoutExpired:
        raise Unavailable(f"{command[0]} has not answered for {timeout:.0f} s") from None
    if done.returncode:
        reason = (done.stderr.strip() or done.stdout.strip() or f"status {done.returncode}").splitlines()[-1]
        raise Unavailable(re.sub(r"^(\w+: )?(error: )?", f"{command[0]}: ", reason))
    return done.stdout


def max_array_size() -> int:
    """The largest number of tasks in an array.

    Raises:
        UserError: where SLURM's commands are missing or its controller does not answer.
    """
    if missing := [name for name in ("sbatch", "squeue", "scancel", "srun") if shutil.which(name) is None]:
        raise UserError(
            f"cluster=slurm: {missing[0]} is not installed here; submit from a login node, or give cluster=local"
        )
    try:
        limit = re.search(r"^MaxArraySize\s*=\s*(\d+)", ask("scontrol", "show", "config"), re.M)
    except Unavailable as error:
        raise UserError(f"cluster=slurm: SLURM does not answer ({error}); try again when it does") from None
    return max(1, int(limit[1]) - 1) if limit else 1000


def submit(
    settings: Any,
    *,
    name: str,
    command: Sequence[str],
    environment: Mapping[str, str],
    folder: Path,
    size: int,
    after: str | None,
) -> str:
    """Submit an array of `size` tasks, each running the command with its index appended; the job's id.

    `after` is a job that must end first.

    Raises:
        UserError: where sbatch refuses.
    """
    from submitit.core.utils import FailedJobError, FailedSubmissionError
    from submitit.slurm.slurm import SlurmExecutor

    executor = SlurmExecutor(folder / "sbatch")
    (folder / "sbatch").mkdir(exist_ok=True)
    options = {key: getattr(settings, key) for key in ("partition", "account", "qos", "constraint", "mem")}
    executor.update_parameters(
        job_name=name,
        nodes=settings.nodes,
        ntasks_per_node=settings.ranks_per_node,
        cpus_per_task=settings.cpus_per_rank,
        time=settings.time,
        signal_delay_s=settings.signal_before,
        array_parallelism=settings.max_parallel,
        setup=[f"export {key}={shlex.quote(value)}" for key, value in environment.items()] + settings.setup,
        stderr_to_stdout=True,
        use_srun=False,
        additional_parameters={
            **({"gpus-per-task": settings.gpus_per_rank} if settings.gpus_per_rank else {}),
            **{key: value for key, value in options.items() if value is not None},
            **({"dependency": f"afterany:{after}"} if after else {}),
            "output": str(folder / "logs" / "%A_%a.log"),
            "requeue": True,
            **{key.replace("_", "-"): value for key, value in settings.sbatch.items() if value is not False},
        },
    )
    executor.parameters["map_count"] = size
    try:
        # exec: the task must be what SLURM signals, to see what became of a run that SLURM ends.
        with redirect_stderr(io.StringIO()):  # submitit also prints what its error says
            return executor._submit_command("exec " + shlex.join(command) + " $SLURM_ARRAY_TASK_ID").job_id
    except (FailedJobError, FailedSubmissionError) as error:
        lines = [re.sub(r"^sbatch: (error: )?", "", line).strip() for line in str(error).splitlines()]
        reason = "; ".join(line for line in lines if line and not line.startswith('Try "sbatch'))
        raise UserError(f"cluster=slurm: sbatch refuses: {reason or 'without giving a reason'}") from None


def jobs(ids: Iterable[str]) -> dict[str, Job]:
    """The jobs of these arrays by `<array job>_<task>`, from the accounting and then the queue, which is newer.

    Raises:
        Unavailable: where the queue cannot be asked.
    """
    by_task = {}
    for some in _portions(sorted(set(ids))):
        for line in _accounting(some).splitlines():
            job, state, nodes = [*line.split("|"), "", ""][:3]
            if re.fullmatch(r"\d+_\d+", job):
                by_task[job] = _job(state, nodes)
        for line in _queue(some).splitlines():
            array, task, state, nodes, reason = [*line.split("|"), *[""] * 5][:5]
            by_task[f"{array}_{task}"] = _job(state, nodes, reason)
    return by_task


def find(name: str) -> list[str]:
    """The array jobs with this name, in the queue or in the accounting, oldest first.

    Raises:
        Unavailable: where the queue cannot be asked.
    """
    ids = set(ask("squeue", "--noheader", "--format=%F", f"--name={name}").split())
    with suppress(Unavailable):
        rows = ask("sacct", "--noheader", "--parsable2", "--allocations", f"--name={name}", "--format=JobID").split()
        ids |= {row.partition("_")[0] for row in rows}
    return sorted(ids, key=int)


def cancel(tasks: Sequence[str]) -> None:
    """Cancel array tasks; raises `Unavailable`."""
    for some in _portions(tasks):
        ask("scancel", "--quiet", *some)


def requeue_this_task() -> None:
    """Put the array task that this process is in back into the queue; raises `Unavailable`."""
    # Not SLURM_JOB_ID: for an array's last task it is the id of the whole array, which would all run again.
    ask("scontrol", "requeue", f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}")


def _queue(ids: Sequence[str]) -> str:
    try:
        return ask("squeue", "--noheader", "--array", f"--jobs={','.join(ids)}", "--format=%F|%K|%T|%N|%r")
    except Unavailable as error:
        # squeue fails where the only job asked for has left the queue.
        if "nvalid job id" in str(error):
            return ""
        raise


def _accounting(ids: Sequence[str]) -> str:
    try:
        selection = f"--jobs={','.join(ids)}"
        return ask("sacct", "--noheader", "--parsable2", "--allocations", selection, "--format=JobID,State,NodeList")
    except Unavailable:
        return ""  # a cluster without accounting: only the records show jobs that have left the queue


def _job(state: str, nodes: str, reason: str = "None") -> Job:
    state = state.split(" ")[0]  # "CANCELLED by 0"
    node = "" if nodes in ("None assigned", "(null)") else nodes
    return Job(_PHASE_OF.get(state, "ended"), state, node, reason if reason != "None" else None)


def _portions(items: Sequence[str], size: int = 500) -> list[Sequence[str]]:
    return [items[start : start + size] for start in range(0, len(items), size)]
