"""A multimodal student learns from a multimodal teacher, goes on to the bit, and stays the checkpoint that it was."""

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file

from opd.recipes.tokenizer import build_tokenizer
from opd.records.run_dir import RunDir
from opd.train import train
from tests.integration.conftest import composed
from tests.integration.test_resume import content
from tests.multimodal import random_model


def test_a_multimodal_student_is_trained_and_resumed(tmp_path: Path):
    tokenizer = build_tokenizer()
    for seed, name in enumerate(("student", "teacher")):
        model = random_model("gemma3", seed=seed, vocab_size=len(tokenizer), eos_token_id=tokenizer.eos_token_id)
        model.bfloat16().save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    problems = tmp_path / "train.jsonl"
    rows = [{"id": f"p{a}", "problem": f"{a}+{a}=", "answer": str(2 * a)} for a in range(1, 9)]
    problems.write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = [
        "scale=own",
        f"student.model={tmp_path / 'student'}",
        f"teacher.models=[{tmp_path / 'teacher'}]",
        f"prompts.source.file={problems}",
        f"paths.outputs={tmp_path / 'outputs'}",
        "evaluate.benchmarks=[]",
        "prompts.template=raw",
        "prompts.suffix=''",
        "num_steps=2",
        "batch_size=4",
        "samples_per_prompt=2",
        "max_response_length=8",
        "checkpoint.every=1",
    ]
    train(composed(command))
    (path,) = (tmp_path / "outputs" / "main").iterdir()
    run = RunDir(path)
    whole = content(run)
    final = load_file(run.checkpoints / "final" / "model-00002-of-00002.safetensors")
    source = load_file(tmp_path / "student" / "model.safetensors")
    assert final.keys() == {name for name in source if not name.startswith("language_model.")}
    assert all(torch.equal(tensor, source[name]) for name, tensor in final.items())

    for name in ("step_000002", "final"):
        shutil.rmtree(run.checkpoints / name)
    run.update_status(state="running", step=2)
    train(composed(command))
    assert content(run) == whole
