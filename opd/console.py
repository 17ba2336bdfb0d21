"""`opd COMMAND …`, which is `python -m MODULE …` of that command: the same help, output and exit status.

eval "$(opd -sc install=bash)"       completes commands, groups, choices and keys with the tabulator
"""

import difflib
import os
import runpy
import sys
from collections.abc import Sequence

# Command → its module, and what it does.
COMMANDS = {
    "train": ("opd.train", "Trains a run, or with -m several; goes on with one that was stopped."),
    "evaluate": ("opd.evaluate", "Evaluates a run's checkpoint or any model: k graded answers to each problem."),
    "sft": ("opd.sft", "Trains the small models of a world's recipes."),
    "submit": ("sweeps.submit", "Checks all runs of a sweep and submits them, here or to SLURM."),
    "status": ("sweeps.status", "Shows the state of every run of a study."),
    "logs": ("sweeps.logs", "Prints a submitted run's output."),
    "resubmit": ("sweeps.resubmit", "Submits again what ended without finishing."),
    "cancel": ("sweeps.cancel", "Cancels queued and running runs."),
    "prune": ("sweeps.prune", "Deletes finished runs' checkpoints, but the final ones."),
    "report": ("analysis.report", "Makes a page, tables and figures of runs or of a study's export."),
    "study": ("analysis.study", "Exports a study into a few files, or packs it into one with its page."),
    "calibration": ("analysis.calibration", "Measures how often the report errs, on runs whose truth is known."),
}
_COMPOSING = ("train", "evaluate", "sft", "submit")  # those with the groups and keys of a run


def main() -> None:
    """Runs the command that the arguments name, in this process."""
    name, *arguments = sys.argv[1:] or ["--help"]
    if name in ("-h", "--help"):
        return print(overview())
    if name == "-sc":
        return _complete(arguments)
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1, cutoff=0)[0]
        print(f"opd: {name!a}: there is no such command; did you mean {near}? opd --help lists all", file=sys.stderr)
        sys.exit(2)
    _run(name, arguments)


def overview() -> str:
    """The commands with a sentence each."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {what}" for name, (_, what) in COMMANDS.items()]
    return "\n".join(
        [
            "opd COMMAND …: on-policy distillation of language models; opd COMMAND --help says more of each.",
            "",
            *lines,
            "",
            f"Each is a module too: opd train … is python -m {COMMANDS['train'][0]} …",
        ]
    )


def _run(name: str, arguments: Sequence[str]) -> None:
    sys.argv[1:] = arguments
    runpy.run_module(COMMANDS[name][0], run_name="__main__", alter_sys=True)


def _complete(arguments: Sequence[str]) -> None:
    """Answers bash, which asks with Hydra's option while it completes a line; to Hydra `opd COMMAND` is one word."""
    if list(arguments) == ["install=bash"]:
        from hydra._internal.core_plugins.bash_completion import BashCompletion

        return BashCompletion(config_loader=None).install()  # pyright: ignore[reportArgumentType]
    line = os.environ.get("COMP_LINE", "")
    program, command, rest = (*line.split(None, 2), "", "", "")[:3]
    if (not rest and not line.endswith(" ")) or not command:
        return print(*COMMANDS)
    if command in _COMPOSING:
        os.environ["COMP_LINE"] = f"{program} {rest}"
        _run("train", ["-sc", *arguments])


if __name__ == "__main__":
    main()
