"""The main job on real text: GSM8K and DeepMath prompts, five competition sets, a BPE vocabulary, a chat template."""

import json
import math
import sys
from pathlib import Path

import pytest

from opd import cli, evaluate, train
from opd.records.run_dir import RunDir
from tests.integration.conftest import composed
from tests.shared_data import CI, DATA

COMPETITIONS = {"aime24": 30, "aime25": 30, "hmmt25": 30, "brumo25": 30, "beyondaime": 100}

if not DATA.is_dir() and CI:
    pytest.fail(f"the real problem sets are not at {DATA}, and CI must run on them", pytrace=False)
pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason=f"the real problem sets are not at {DATA}")


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A student and a teacher of random weights over the 2,020-token vocabulary, with Qwen3's chat template."""
    import torch
    from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

    folder = tmp_path_factory.mktemp("bpe")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(DATA / "tokenizers" / "torchtitan-test" / "tokenizer.json"),
        eos_token="<|end_of_text|>",
        pad_token="<|pad|>",
        chat_template=(DATA / "tokenizers" / "trl-chat-templates" / "qwen3.jinja").read_text(),
    )
    for seed, (name, layers) in enumerate({"student": 1, "teacher": 2}.items()):
        torch.manual_seed(seed)
        config = Qwen3Config(
            vocab_size=max(tokenizer.get_vocab().values()) + 1,
            hidden_size=32,
            num_hidden_layers=layers,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=16,
            intermediate_size=48,
            max_position_embeddings=4096,
            initializer_range=0.1,
            tie_word_embeddings=True,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=None,
        )
        Qwen3ForCausalLM(config).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    return folder / "student", folder / "teacher"


def overrides(pair: tuple[Path, Path], outputs: Path, prompts: str) -> list[str]:
    student, teacher = pair
    return [
        "scale=own",
        f"student.model={student}",
        f"teacher.models=[{teacher}]",
        f"prompts.source.file={DATA / prompts}",
        "prompts.source.limit=40",
        f"paths.data={DATA}",
        f"paths.outputs={outputs}",
        f"evaluate.benchmarks=[{','.join(COMPETITIONS)}]",
        "num_steps=2",
        "batch_size=4",
        "samples_per_prompt=2",
        "max_response_length=24",
        "evaluate.k=2",
        "evaluate.max_response_length=16",
        "evaluate.at_start=false",
    ]


@pytest.mark.parametrize(
    "prompts", ["gsm8k_train.jsonl", pytest.param("deepmath_sample.jsonl", marks=pytest.mark.apart)]
)
def test_a_run_on_real_text_trains_evaluates_and_reports(prompts: str, pair, tmp_path: Path):
    from analysis import report

    status = train.train(composed(overrides(pair, tmp_path / "outputs", prompts)))
    assert status.state == "finished"
    (path,) = (tmp_path / "outputs" / "main").iterdir()
    folder = RunDir(path)

    samples = folder.samples(2)
    counts = {name: len({s.problem_id for s in samples if s.benchmark == name}) for name in COMPETITIONS}
    assert counts == COMPETITIONS and len(samples) == 2 * sum(COMPETITIONS.values())
    for line in folder.metrics():
        assert math.isfinite(line["loss"]) and line["grad_norm"] > 0
        assert line["rollout_correction/abs_log_ratio"] < 1e-4
    assert {name for name in folder.metrics()[-1] if name.endswith("mean@2")} == {
        "evaluate/mean@2",
        *(f"evaluate/{name}/mean@2" for name in COMPETITIONS),
    }

    report.main([f"runs={tmp_path / 'outputs'}", f"out={tmp_path / 'report'}"])
    page = (tmp_path / "report" / "report.html").read_text()
    assert all(name in page for name in COMPETITIONS)


def test_prompts_are_the_chat_templates_rendering(pair, tmp_path: Path):
    from opd.step.assemble import load_prompts, load_student_tokenizer

    config = composed(overrides(pair, tmp_path, "gsm8k_train.jsonl"))
    tokenizer = load_student_tokenizer(config)
    first = load_prompts(config.prompts.source, config, tokenizer, key="prompts.source")[0]
    problem = json.loads((DATA / "gsm8k_train.jsonl").read_text().splitlines()[0])["problem"]
    assert first.problem == problem
    shown = (
        f"<|im_start|>user\n{problem}\nPlease reason step by step, and put your final answer within \\boxed{{}}."
        "<|im_end|>\n<|im_start|>assistant\n"
    )
    assert list(first.token_ids) == tokenizer.encode(shown)


def test_a_finished_run_is_examined_on_gsm8k(pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    outputs = tmp_path / "outputs"
    train.train(composed([*overrides(pair, outputs, "gsm8k_train.jsonl"), "evaluate.benchmarks=[aime24]"]))
    (path,) = (outputs / "main").iterdir()
    # A benchmark that the run did not record is found among the project's own.
    given = [f"run={path}", "evaluate.k=1", "evaluate.benchmarks=[aime24,gsm8k]", "name=again"]
    monkeypatch.setattr(sys, "argv", ["opd.evaluate", *given, "evaluate.sources.gsm8k.limit=7"])
    cli.main(evaluate._main, evaluate.arguments)
    (again,) = (outputs / "evaluate").iterdir()
    samples = RunDir(again).samples(0)
    assert again.name.startswith("again-")
    assert {name: sum(s.benchmark == name for s in samples) for name in ("aime24", "gsm8k")} == {
        "aime24": 30,
        "gsm8k": 7,
    }
