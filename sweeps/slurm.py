"""SLURM, by its own commands, and by submitit where a script is made and submitted."""

import io
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from opd.errors import UserError

if TYPE_CHECKING:  # pydantic is slow to import, and a look at a study needs none of it
    from sweeps.cluster import Slurm

# Of SLURM's states, those in which a job may still come to run, and those in which it does.
WAITING = {"PENDING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT", "RESV_DEL_HOLD"}
LIVE = {"RUNNING", "COMPLETING", "CONFIGURING", "SUSPENDED", "STOPPED", "RESIZING", "SIGNALING", "STAGE_OUT"}


@dataclass(frozen=True)
class Job:
    """What SLURM says of one task of an array: its state, nodes, time left and why it waits."""

    state: str
    node: str
    left: str
    reason: str


class Unanswered(Exception):
    """SLURM's commands are missing or fail; the text says how."""


def ask(*command: str, timeout: float = 30.0) -> str:
    """One of SLURM's commands; its output.

    Raises:
        Unanswered: where it is missing, fails or takes longer than `timeout` seconds.
    """
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)
    except FileNotFoundError:
        raise Unanswered(f"{command[0]} is not installed here") from None
    except subprocess.TimeoutExpired:
        raise Unanswered(f"{command[0]} has not answered for {timeout:.0f} s") from None
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip() or f"status {done.returncode}").splitlines()[-1]
        raise Unanswered(re.sub(r"^(\w+: )?(error: )?", f"{command[0]}: ", said))
    return done.stdout


def require() -> int:
    """Holds that jobs can be submitted here, and returns how many tasks an array may have.

    Raises:
        UserError: where SLURM's commands are missing or its controller does not answer.
    """
    if missing := [name for name in ("sbatch", "squeue", "scancel", "srun") if shutil.which(name) is None]:
        raise UserError(
            f"cluster=slurm: {missing[0]} is not installed here; submit from a login node, or cluster=local"
        )
    try:
        found = re.search(r"^MaxArraySize\s*=\s*(\d+)", ask("scontrol", "show", "config"), re.M)
    except Unanswered as error:
        raise UserError(f"cluster=slurm: SLURM does not answer ({error}); try again when it does") from None
    return max(1, int(found[1]) - 1) if found else 1000


def submit(
    slurm: "Slurm",
    *,
    name: str,
    command: Sequence[str],
    environment: Mapping[str, str],
    folder: Path,
    tasks: int,
    after: str | None,
) -> str:
    """Submits an array of `tasks` tasks, each the command and its own place in the array; returns the job's id.

    `after`: a job that must have ended first.

    Raises:
        UserError: where sbatch refuses.
    """
    from submitit.core.utils import FailedJobError, FailedSubmissionError
    from submitit.slurm.slurm import SlurmExecutor

    executor = SlurmExecutor(folder / "sbatch")
    (folder / "sbatch").mkdir(exist_ok=True)
    given = {key: getattr(slurm, key) for key in ("partition", "account", "qos", "constraint", "mem")}
    extra = {key.replace("_", "-"): value for key, value in slurm.sbatch.items() if value is not False}
    executor.update_parameters(
        job_name=name,
        nodes=slurm.nodes,
        ntasks_per_node=slurm.ranks_per_node,
        cpus_per_task=slurm.cpus_per_rank,
        time=slurm.time,
        signal_delay_s=slurm.signal_before,
        array_parallelism=slurm.max_parallel,
        setup=[f"export {key}={shlex.quote(value)}" for key, value in environment.items()] + slurm.setup,
        stderr_to_stdout=True,
        use_srun=False,
        additional_parameters={
            **({"gpus-per-task": slurm.gpus_per_rank} if slurm.gpus_per_rank else {}),
            **{key: value for key, value in given.items() if value is not None},
            **({"dependency": f"afterany:{after}"} if after else {}),
            "output": str(folder / "logs" / "%A_%a.log"),
            "requeue": True,
            **extra,
        },
    )
    executor.parameters["map_count"] = tasks
    try:
        # The batch shell makes way for the task, which must live to see what became of a run that SLURM ends.
        with redirect_stderr(io.StringIO()):  # submitit prints what the error says too
            return executor._submit_command("exec " + shlex.join(command) + " $SLURM_ARRAY_TASK_ID").job_id
    except (FailedJobError, FailedSubmissionError) as error:
        lines = [re.sub(r"^sbatch: (error: )?", "", line).strip() for line in str(error).splitlines()]
        said = "; ".join(line for line in lines if line and not line.startswith('Try "sbatch'))
        raise UserError(f"cluster=slurm: sbatch refuses: {said or 'without a word'}") from None


def jobs(ids: Iterable[str]) -> dict[str, Job]:
    """`<array job>_<task>` → what SLURM says of it, for these array jobs: its queue first, then its accounting.

    Raises:
        Unanswered: where the queue cannot be asked.
    """
    wanted, found = sorted(set(ids)), {}
    for some in _portions(wanted):
        for line in _accounted(some).splitlines():
            job, state, nodes = [*line.split("|"), "", ""][:3]
            if re.fullmatch(r"\d+_\d+", job):
                found[job] = Job(state.split(" ")[0], _nodes(nodes), "", "")
        for line in _queued(some).splitlines():
            array, task, state, nodes, left, reason = [*line.split("|"), *[""] * 6][:6]
            found[f"{array}_{task}"] = Job(state, _nodes(nodes), left, reason)
    return found


def named(name: str) -> list[str]:
    """The array jobs that bear a name, in the queue or in the accounting.

    Raises:
        Unanswered: where the queue cannot be asked.
    """
    found = set(ask("squeue", "--noheader", "--format=%F", f"--name={name}").split())
    try:
        rows = ask("sacct", "--noheader", "--parsable2", "--allocations", f"--name={name}", "--format=JobID").split()
        found |= {row.partition("_")[0] for row in rows}
    except Unanswered:
        pass
    return sorted(found, key=int)


def cancel(tasks: Sequence[str]) -> None:
    """Ends array tasks; raises `Unanswered`."""
    for some in _portions(list(tasks)):
        ask("scancel", "--quiet", *some)


def requeue_this_job() -> None:
    """Puts the array task that this process is in back into the queue; raises `Unanswered`."""
    # Not SLURM_JOB_ID: that of an array's last task is the whole array's, which would all run again.
    ask("scontrol", "requeue", f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}")


def python(slurm: "Slurm") -> str:
    """The Python that runs use."""
    return slurm.python or sys.executable


def _queued(ids: Sequence[str]) -> str:
    try:
        return ask("squeue", "--noheader", "--array", f"--jobs={','.join(ids)}", "--format=%F|%K|%T|%N|%L|%r")
    except Unanswered as error:
        # A single job that has left the queue is called an error.
        if "nvalid job id" in str(error):
            return ""
        raise


def _accounted(ids: Sequence[str]) -> str:
    try:
        listed = f"--jobs={','.join(ids)}"
        return ask("sacct", "--noheader", "--parsable2", "--allocations", listed, "--format=JobID,State,NodeList")
    except Unanswered:
        return ""  # a cluster without accounting; what has left its queue is then known from our records alone


def _nodes(text: str) -> str:
    return "" if text in ("None assigned", "(null)") else text


def _portions(items: list[str], size: int = 500) -> list[list[str]]:
    return [items[start : start + size] for start in range(0, len(items), size)]
