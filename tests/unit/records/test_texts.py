import gzip
import json
import os
import subprocess
import sys
import tracemalloc
from contextlib import suppress

import pytest

from opd.records import texts
from opd.records.files import RecordError, write_atomic
from opd.records.run_dir import RunDir, Sample
from opd.records.texts import pack, read_answers, read_texts

HOSTILE = [
    "",
    "\x00\x1b[2J",
    "a\nb\r\n\u2028\u2029\x85",
    "\ud800 alone \udfff",
    '"}\n{"text": "',
    "𝔘 π ∞ \\u0000",
]


def sample(number: int) -> Sample:
    return Sample("aime24", "1", number, False, 0.0, "204", None, 5, False)


@pytest.fixture
def run(tmp_path):
    return RunDir(tmp_path / "default-1a2b3c4d-s0")


def read(run: RunDir, content: bytes) -> list:
    write_atomic(run.texts_file(5), content)
    return list(read_texts(run, 5))


def line(**more) -> bytes:
    return gzip.compress(
        json.dumps({"benchmark": "a", "problem_id": "1", "sample": 0, "text": "x", **more}).encode() + b"\n"
    )


def test_what_is_packed_is_read_whatever_the_model_said(run):
    content = pack("a", "1\n", HOSTILE, problem=HOSTILE[3]) + pack("b", "\ud800", HOSTILE[:1], problem="p")
    found = read(run, content)
    assert found == [(("a", "1\n", n), text) for n, text in enumerate(HOSTILE)] + [(("b", "\ud800", 0), "")]
    problems = [problem for _, _, problem in read_answers(run, 5)]
    assert problems == [HOSTILE[3], *[None] * (len(HOSTILE) - 1), "p"]
    plain = gzip.decompress(content)
    assert plain.isascii() and len(plain.splitlines()) == len(HOSTILE) + 1  # what any other reader of lines sees
    assert [sample(number).key for number in range(2)] == [("aime24", "1", 0), ("aime24", "1", 1)]


def test_texts_are_the_same_bytes_in_every_process_at_any_time():
    code = "import time; time.time = lambda: 7e8; from opd.records.texts import pack; "
    code += "print(pack('a', '1', ['x'] * 9, problem='p').hex())"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout
    here = pack("a", "1", ["x"] * 9, problem="p")
    assert other == here.hex() + "\n"
    assert here[3:8] == bytes(5)  # neither a name nor a time


def test_what_is_not_kept_is_absent_and_no_error(run):
    assert pack("a", "1", [], problem="p") == b""
    run.write_samples(5, [sample(0)])
    assert list(read_texts(run, 5)) == [] and run.texts() == {}
    run.write_samples(5, [sample(0)], pack("a", "1", ["x"], problem="p"))
    assert list(run.texts()) == list(run.evaluations()) == [5]


@pytest.mark.parametrize("cut", [1, 9, 40, -9, -1])
def test_file_that_is_cut_off_is_named(run, cut: int):
    with pytest.raises(RecordError, match=r"step_000005\.text\.jsonl\.gz: is damaged or cut off"):
        read(run, pack("a", "1", HOSTILE, problem="p")[:cut])


@pytest.mark.parametrize("byte", [0, 3, 20, 60, -6, -2])
def test_file_with_a_wrong_byte_is_named(run, byte: int):
    content = bytearray(pack("a", "1", HOSTILE, problem="p"))
    content[byte] ^= 0xFF
    with pytest.raises(RecordError, match=r"step_000005\.text\.jsonl\.gz"):
        read(run, bytes(content))


OTHER = [
    (b"", "gz: is empty"),
    (b"plain\n", "gz: is damaged or cut off"),
    (line() + b"more", "gz: is damaged or cut off"),
    (gzip.compress(b""), "gz: is empty"),
    (gzip.compress(b'{"benchmark": "a"'), "line 1: is cut off"),
    (line() + gzip.compress(b"{\n"), "line 2: Expecting"),
    (gzip.compress(b"[]\n"), "line 1: is not a JSON object"),
    (gzip.compress(b"[" * 100_000 + b"\n"), "line 1: maximum recursion depth"),
    (line(sample=True), "line 1: has no sample of type int"),
    (line(text=None), "line 1: has no text of type str"),
    (line(problem=None), "line 1: has no problem of type str"),
    (line(problem_id=1), "line 1: has no problem_id of type str"),
    (gzip.compress(b'{"benchmark": "a"}\n'), "line 1: has no problem_id of type str"),
]


@pytest.mark.parametrize(("content", "reason"), OTHER, ids=[str(number) for number in range(len(OTHER))])
def test_file_that_holds_something_else_is_named(run, content: bytes, reason: str):
    with pytest.raises(RecordError) as raised:
        read(run, content)
    assert reason in str(raised.value)


def test_a_pipe_in_its_place_is_not_waited_for(run):
    run.texts_file(5).parent.mkdir(parents=True)
    os.mkfifo(run.texts_file(5))
    with pytest.raises(RecordError, match="is a pipe or a device"):
        list(read_texts(run, 5))


def test_a_line_that_unpacks_to_more_than_any_text_is_refused_before_it_is_unpacked(run, monkeypatch):
    monkeypatch.setattr(texts, "LONGEST", 2**16)
    longest = "x" * (2**16 - len(gzip.decompress(line(text=""))))
    assert read(run, line(text=longest)) == [(("a", "1", 0), longest)]
    bomb = line() + gzip.compress(b" " * 2**24)
    assert len(bomb) < 2**15
    tracemalloc.start()
    with pytest.raises(RecordError, match="line 2: is longer than 65536 bytes"):
        read(run, bomb)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**21


def test_texts_are_unpacked_as_they_are_asked_for(run):
    write_atomic(run.texts_file(5), pack("a", "1", ["said"], problem="p") + b"damaged")
    found = read_texts(run, 5)
    assert next(found) == (("a", "1", 0), "said")
    with pytest.raises(RecordError):
        next(found)


def test_a_writer_killed_anywhere_leaves_no_text_beside_another_evaluations_answers(run, monkeypatch):
    """An evaluation that is made again, as by `opd.evaluate`, and dies at each of its writes."""
    old, new = [sample(0)], [sample(0), sample(1)]
    sync, seen = os.fsync, set()
    for dies_at in (0, 1, 2):
        run.write_samples(5, old, pack("aime24", "1", ["old"], problem="p"))
        calls = iter(range(3))

        def fsync(descriptor, calls=calls, dies_at=dies_at):
            if next(calls) == dies_at:
                raise KeyboardInterrupt
            sync(descriptor)

        monkeypatch.setattr(os, "fsync", fsync)
        with suppress(KeyboardInterrupt):
            run.write_samples(5, new, pack("aime24", "1", ["new", "new"], problem="p"))
        monkeypatch.setattr(os, "fsync", sync)
        seen.add((len(run.samples(5)), *(text for _, text in read_texts(run, 5))))
    assert seen == {(1,), (2,), (2, "new", "new")}


def test_answers_without_texts_take_the_place_of_those_with(run):
    run.write_samples(5, [sample(0)], pack("aime24", "1", ["old"], problem="p"))
    run.write_samples(5, [sample(0)])
    assert list(read_texts(run, 5)) == []


def test_texts_after_a_step_are_forgotten_even_where_their_answers_were_never_written(run):
    for step in (1, 2, 3):
        run.write_samples(step, [sample(0)], pack("aime24", "1", ["x"], problem="p"))
    run.samples_file(3).unlink()
    run.rewind(1)
    assert list(run.texts()) == list(run.evaluations()) == [1]


def test_texts_import_no_torch():
    code = "import sys, opd.records.texts; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"
