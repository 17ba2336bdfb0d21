"""Ways in which the files of a study are damaged, for `benchmarks.report` and the tests."""

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import yaml

from opd.records.run_dir import find_runs


def damage_files(root: Path, *, share: float, kinds: Sequence[str], seed: int) -> dict[str, set[str]]:
    """Damages this share of the files of the runs under `root`, each in one of `kinds`; run → how."""
    rng = np.random.default_rng(seed)
    files = [
        (str(run.path.relative_to(root)), file)
        for run in find_runs(root)
        for file in sorted(run.path.rglob("*"))
        if file.is_file()
    ]
    touched: dict[str, set[str]] = {}
    for number in rng.choice(len(files), int(share * len(files)), replace=False):
        (run, file), kind = files[int(number)], kinds[int(rng.integers(len(kinds)))]
        EVERY[kind](file, rng)
        touched.setdefault(run, set()).add(kind)
    return touched


def cut(file: Path, rng: np.random.Generator) -> None:
    content = file.read_bytes()
    file.write_bytes(content[: rng.integers(len(content))])


def cut_between_lines(file: Path, rng: np.random.Generator) -> None:
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join(lines[: rng.integers(len(lines))]))


def without_a_line(file: Path, rng: np.random.Generator) -> None:
    lines = file.read_bytes().splitlines(keepends=True)
    del lines[rng.integers(len(lines))]
    file.write_bytes(b"".join(lines))


def flip(file: Path, rng: np.random.Generator) -> None:
    content = bytearray(file.read_bytes())
    for at in rng.integers(len(content), size=3):
        content[at] ^= 1 << rng.integers(8)
    file.write_bytes(content)


def replaced(make: Callable[[Path], object]) -> Callable[[Path, np.random.Generator], None]:
    def damage(file: Path, rng: np.random.Generator) -> None:
        file.unlink()
        make(file)

    return damage


def with_values(value: object) -> Callable[[Path, np.random.Generator], None]:
    """Every value of a JSON record's lines, or of a config's top, in turn the wrong one."""

    def damage(file: Path, rng: np.random.Generator) -> None:
        lines = [file.read_text()] if file.suffix != ".jsonl" else file.read_text().splitlines()
        number = int(rng.integers(len(lines)))
        record = yaml.safe_load(lines[number]) if file.suffix == ".yaml" else json.loads(lines[number])
        record[sorted(record)[rng.integers(len(record))]] = value
        file.write_text("\n".join([*lines[:number], json.dumps(record), *lines[number + 1 :]]) + "\n")

    return damage


# Damage that leaves a mark. A changed bit may turn one number into another, and a number be none: those are below.
MARKED = {
    "cut": cut,
    "cut between lines": cut_between_lines,
    "without a line": without_a_line,
    "empty": replaced(lambda file: file.write_bytes(b"")),
    "binary": replaced(lambda file: file.write_bytes(os.urandom(5000))),
    "deleted": lambda file, rng: file.unlink(),
    "foreign": replaced(lambda file: file.write_text('{"model": "7b", "layers": [1, 2]}\n')),
    "a link to itself": replaced(lambda file: file.symlink_to(file.name)),
    "a link to nowhere": replaced(lambda file: file.symlink_to("/nowhere")),
    "a folder": replaced(lambda file: file.mkdir()),
    "a pipe": replaced(lambda file: os.mkfifo(file)),
    "a device": replaced(lambda file: file.symlink_to("/dev/zero")),
    "an enormous line": replaced(lambda file: file.write_text('{"step": "' + "9" * 300_000 + '"}\n')),
    "deep": replaced(lambda file: file.write_text("[" * 20_000 + "\n")),
}
UNMARKED = {
    "flip": flip,
    "null": with_values(None),
    "text": with_values("x\u202e</script>"),
    "list": with_values([[]]),
    "huge": with_values(10**30),
    "more than huge": with_values(10**400),
    "negative": with_values(-(10**18)),
    "NaN": with_values(float("nan")),
    "infinite": with_values(float("inf")),
}
EVERY = MARKED | UNMARKED
