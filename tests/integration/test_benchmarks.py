"""The benchmark of whole steps, as far as it runs without TRL."""

import re
import subprocess
import sys


def test_the_benchmark_of_whole_steps_samples_every_token_and_prints_speed_memory_and_stages() -> None:
    sizes = ["--vocabularies", "32", "--batch", "2", "--tokens", "4", "--prompt", "8", "--steps", "1"]
    command = [sys.executable, "-m", "benchmarks.trl", "--arms", "full", *sizes]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    row = re.search(r"^full +([\d,]+) .* ([\d,]+) MB +rollout .* backward", done.stdout, re.M)
    assert row and int(row[1].replace(",", "")) > 0 and int(row[2].replace(",", "")) > 0, done.stdout


def test_an_arm_that_cannot_start_ends_the_benchmark_with_its_name() -> None:
    command = [sys.executable, "-m", "benchmarks.trl", "--arms", "trl", "--trl", "false", "--vocabularies", "32"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "trl: ended with status 1"
