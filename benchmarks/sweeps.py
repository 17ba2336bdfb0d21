"""How submitting, status and disk grow with the number of runs: `python -m benchmarks.sweeps [1000 10000]`.

The runs are records, written as runs write them; nothing is trained. The status is asked as a user asks it, in a
process of its own; composing is of as many runs with three seeds an arm, and all of the checks.
"""

import json
import os
import subprocess
import sys
import tempfile
import time

from filelock import FileLock

from opd.records import files as records
from opd.records.run_dir import RunDir, Status
from sweeps import compose, state
from sweeps.ledger import Ledger, new_id, write_submission
from sweeps.plan import Plan, plan
from sweeps.snapshot import ROOT
from sweeps.submission import environment, recover


def main(numbers: list[int]) -> None:
    for number in numbers:
        with tempfile.TemporaryDirectory() as outputs:
            started = time.perf_counter()
            with compose.composer() as composer:
                arms = -(-number // 3)
                grid = f"sweep.grid=[{{gamma:{[round(i / arms, 6) for i in range(arms)]}}}]".replace(" ", "")
                composer.config([])  # torch is imported here, once
                imported = time.perf_counter() - started
                started = time.perf_counter()
                planned = plan(composer, ["+sweep=gamma", grid, f"paths.outputs={outputs}"], ranks=1)
            composed = time.perf_counter() - started
            started = time.perf_counter()
            book = handed_over(planned)
            written = time.perf_counter() - started
            records_of_a_week(book, [run.id for run in planned.runs])
            started = time.perf_counter()
            with book.lock():
                recover(book)
                state.read(book, [run.id for run in planned.runs])
            again = time.perf_counter() - started
            runner = book.submission_folder(book.submissions()[-1].id) / "runner.lock"
            with FileLock(runner):  # as that of a submission that still runs
                first, looked, processor = asked(outputs)
            files = [file for file in book.folder.rglob("*") if file.is_file()]
            size, many = sum(file.stat().st_size for file in files), len(planned.runs)
            print(
                f"{many} runs: composed and checked in {composed:.1f} s (imports {imported:.1f} s), "
                f"written in {written:.2f} s, looked at by a second submission in {again:.2f} s; "
                f"status {looked:.2f} s ({processor:.2f} s of CPU), the first time {first:.2f} s; "
                f"a submission keeps {size / many / 1e3:.1f} kB and {len(files) / many:.2f} files a run",
                flush=True,
            )


def handed_over(planned: Plan) -> Ledger:
    """All that a submission writes, without a scheduler to take it."""
    book, names = Ledger(planned.study), [run.id for run in planned.runs]
    with book.lock():
        state.read(book, names)
        submission, configs = new_id(), [run.config for run in planned.runs]
        write_submission(book.submission_folder(submission), {"kind": "local"}, names, configs, "0")
        intent = {"sweep": "gamma", "cluster": "local", "code": "0", "runs": names, "portion": len(names)}
        book.append("intent", submission=submission, **intent)
        book.append("submitted", submission=submission, jobs=[], pid=os.getpid(), host=os.uname().nodename)
    return book


def records_of_a_week(book: Ledger, runs: list[str]) -> None:
    """Two thirds finished, the rest in the midst of it; 100 steps of metrics each."""
    line = {"step": 100, "time": 60.0, "divergence/reverse_kl": 0.1, "evaluate/mean@8": 0.5, "time/learn": 0.5}
    text = "".join(json.dumps({**line, "step": step}) + "\n" for step in range(100))
    for place, run in enumerate(runs):
        folder = RunDir(book.study / run)
        folder.path.mkdir()
        finished = place % 3 > 0
        status = Status(
            "finished" if finished else "running", 99, 100, None, records.now(), records.now(), "n", None, 1
        )
        folder.status_file.write_text(json.dumps(status.__dict__))
        folder.metrics_file.write_text(text)


def asked(outputs: str) -> tuple[float, float, float]:
    """Seconds of `python -m sweeps.status`: the first time, then the best of three, and the CPU's of that one."""
    taken = []
    for _ in range(4):
        started, before = time.perf_counter(), os.times()
        command = [sys.executable, "-m", "sweeps.status", f"paths.outputs={outputs}"]
        subprocess.run(command, check=True, capture_output=True, env=dict(os.environ) | environment(ROOT))
        now = os.times()
        processor = now.children_user + now.children_system - before.children_user - before.children_system
        taken.append((time.perf_counter() - started, processor))
    return taken[0][0], *min(taken[1:])


if __name__ == "__main__":
    main([int(text) for text in sys.argv[1:]] or [1000, 10_000])
