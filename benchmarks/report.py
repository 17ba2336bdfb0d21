"""The report of a big study: seconds and memory of each part, and how soon its page answers in headless Chromium.

    python -m benchmarks.report [--runs 1000 --steps 1000 --evaluations 7 --problems 200 --samples 8]
    python -m benchmarks.report --folder DIR [--keep]      a study that is there; --keep: its cache too
    python -m benchmarks.report --damaged 0.1              again with this share of its files damaged in random ways

The records are written as runs write them (`benchmarks.study`); nothing is trained. Each report is made in a process of
its own: with no cache, then with the one that it left. "interactive": the page has read its data, drawn the figures in
view and the browser is idle; "choice": from a click on a run to the figures in view drawn anew. Of a damaged study it
is also compared whether runs without a damaged file read as before, and whether each that reads otherwise is named.
"""

import argparse
import json
import math
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from analysis.cache import FOLDER, Cache
from benchmarks.damage import EVERY, MARKED, damage_files
from benchmarks.study import add_size, size_of, write_study

SEEN = """() => {
  const near = [...document.querySelectorAll(".plot")].filter(p => p.getBoundingClientRect().top < innerHeight);
  return document.documentElement.dataset.ready === "true" && near.every(p => p.querySelector(".main-svg"));
}"""
IDLE = "() => new Promise(done => requestAnimationFrame(() => setTimeout(done, 0)))"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--keep", action="store_true")
    parser.add_argument("--damaged", type=float, metavar="SHARE")
    parser.add_argument("--once", type=Path, help=argparse.SUPPRESS)
    add_size(parser)
    args = parser.parse_args()
    if args.once:
        print(json.dumps(report(args.folder, args.once)))
        return
    with tempfile.TemporaryDirectory() as scratch:
        folder, size = args.folder or Path(scratch) / "runs", size_of(args)
        if not args.folder:
            started = time.perf_counter()
            write_study(folder, size)
            print(f"written in {time.perf_counter() - started:.0f} s", flush=True)
            time.sleep(Cache(folder).margin)
        if not args.keep:
            shutil.rmtree(folder / FOLDER, ignore_errors=True)
        if args.damaged and args.folder:
            parser.error("--damaged: damages no study that is there; leave out --folder")
        measured(("no cache", "cache"), folder, Path(scratch) / "report")
        if args.damaged:
            print(spared(folder, args.damaged, lambda: measured(("damaged",), folder, Path(scratch) / "damaged")))


def measured(names: tuple[str, ...], folder: Path, out: Path) -> None:
    """Makes the report of `folder` so many times, each in a process of its own, and prints what that took."""
    for what in names:
        command = [sys.executable, "-m", "benchmarks.report", "--folder", str(folder), "--once", str(out)]
        parts = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        print(f"{what}: {parts.pop('read')}", flush=True)
        for name, (seconds, computed, peak) in parts.items():
            print(f"  {name:10} {seconds:6.1f} s ({computed:.1f} s of processor), {peak:.2f} GB so far", flush=True)
        print(f"  {'all':10} {sum(seconds for seconds, *_ in parts.values()):6.1f} s", flush=True)
    print(f"page {(out / 'report.html').stat().st_size / 1e6:.1f} MB; {opened(out / 'report.html')}")


def spared(folder: Path, share: float, measure: Callable[[], None]) -> str:
    """Damages the study, measures, and compares what is read then with what was read before.

    Raises:
        AssertionError: where a run without a damaged file reads otherwise, or one that does is not named.
    """
    from analysis.load import load

    before = load(folder)
    touched = damage_files(folder, share=share, kinds=sorted(EVERY), seed=0)
    measure()
    after = load(folder)
    named = {run for run, *_ in after.damage}
    assert named <= touched.keys()
    changed = set[str]()
    for frame in ("runs", "training", "scores", "answers"):
        ours, theirs = (dict(iter(getattr(records, frame).groupby("run"))) for records in (before, after))
        for run, rows in ours.items():
            now = theirs.get(run)
            if now is None or not rows.reset_index(drop=True).equals(now.reset_index(drop=True)):
                changed.add(str(run))
    assert changed <= touched.keys(), f"{min(changed - touched.keys())} has no damaged file and reads otherwise"
    silent = {run for run in changed - named if touched[run] <= MARKED.keys()}
    assert not silent, f"{min(silent)} reads otherwise and is not named"
    return (
        f"{len(touched)} runs have a damaged file, {len(named)} of them are named, {len(changed)} read otherwise; the "
        f"{len(before.runs) - len(touched)} others read as before"
    )


def report(folder: Path, out: Path) -> dict[str, Any]:
    """Part → seconds, seconds of processor and peak memory in GB; and how much was read."""
    started = time.perf_counter(), time.process_time()
    from analysis.command import write
    from analysis.contrasts import Bootstrap
    from analysis.load import load
    from analysis.report import Arguments, contents
    from analysis.results import analyse

    parts: dict[str, Any] = {"imports": _measures(*started)}

    def timed(name: str, work: Callable[[], Any]) -> Any:
        started = time.perf_counter(), time.process_time()
        found = work()
        parts[name] = _measures(*started)
        return found

    given = Arguments(folder, out)
    records = timed("load", lambda: load(folder, cache=Cache(folder)))
    bootstrap = Bootstrap(count=given.bootstrap, seed=given.seed)
    results = timed("statistics", lambda: analyse(records, baseline=given.baseline, bootstrap=bootstrap))
    made, _ = timed("page", lambda: contents(results, given))
    timed("write", lambda: write(out, made))
    samples = int(records.scores["k"].sum())
    parts["read"] = (
        f"{len(records.runs)} runs, {len(records.training)} steps, {samples} samples, {len(records.damage)} damaged"
    )
    return parts


def _measures(started: float, computed: float) -> tuple[float, float, float]:
    # Not of `resource`, where a process starts with the peak of the one that started it.
    peak = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return time.perf_counter() - started, time.process_time() - computed, int(peak[1]) / 1e6 if peak else math.nan


def opened(page: Path) -> str:
    """How soon the page answers in Chromium, the median of three."""
    from playwright.sync_api import sync_playwright

    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        return "not opened: no chromium on PATH"
    found = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for _ in range(3):
            tab = browser.new_page(viewport={"width": 1280, "height": 900})
            started = time.perf_counter()
            tab.goto(page.as_uri(), wait_until="commit")
            tab.wait_for_function(SEEN)
            tab.evaluate(IDLE)
            ready = time.perf_counter() - started
            started = time.perf_counter()
            tab.locator(".chip").first.click()
            tab.evaluate(IDLE)
            found.append((ready, time.perf_counter() - started))
            tab.close()
        browser.close()
    ready, choice = (sorted(times)[1] for times in zip(*found, strict=True))
    return f"interactive in {ready:.2f} s, a choice in {choice:.2f} s"


if __name__ == "__main__":
    main()
