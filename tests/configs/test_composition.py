"""Every experiment at every scale composes to the values committed under tests/golden/configs.

OPD_UPDATE_GOLDEN=1 rewrites them; the difference then stands in the commit for a reader to judge.
"""

import os
from pathlib import Path

import pytest
import yaml
from hydra import compose, initialize_config_dir

from opd import check, cli, records
from opd.config import RunConfig

GOLDEN = Path(__file__).parents[1] / "golden" / "configs"
EXPERIMENTS = sorted(file.stem for file in (cli.CONF / "experiment").glob("*.yaml"))
SCALES = {
    "tiny": [],
    "qwen3_0_6b": [],
    "qwen3_4b": [],
    "own": ["student.model=student", "scale.ladder=[a,b]", "prompts.source.file=train.jsonl"],
}
# What a method file leaves open.
OPEN = {"by_domain": ["ensemble.domain={addition: 0}"]}
# Published numbers, from the `setting` of the claims that the project reproduces (adventures, Table 1).
TABLE_1 = {
    "student.model": "Qwen/Qwen3-4B-Base",
    "teacher.models": ["Qwen/Qwen3-4B"],
    "prompts.source.hub": "zwhe99/DeepMath-103K",
    "epochs": 1,
    "batch_size": 512,
    "samples_per_prompt": 4,
    "max_response_length": 8192,
    "rollout.temperature": 1.0,
    "teacher.temperature": 1.0,
    "divergence._target_": "opd.objective.divergence.reverse_kl",
    "gamma": 0.0,
    "whitening": "batch",
    "entropy_coef": 0.0,
    "optim.lr": 1e-5,
    "optim.schedule": "constant",
    "optim.betas": [0.9, 0.95],
    "optim.weight_decay": 0.0,
    "optim.grad_clip": 1.0,
    "rollout_correction._target_": "opd.objective.rollout_correction.mis",
    "rollout_correction.low": 0.5,
    "rollout_correction.high": 2.0,
    "evaluate.k": 8,
    "evaluate.temperature": 0.7,
    "evaluate.top_p": 0.9,
    "evaluate.benchmarks": ["brumo25", "hmmt25", "beyondaime", "aime24", "aime25"],
}


def composed(*overrides: str) -> RunConfig:
    cli.register_resolvers()
    with initialize_config_dir(str(cli.CONF), version_base="1.3"):
        return check.prepare(cli.resolved(compose("config", overrides=list(overrides))))


def flat(node: object, prefix: str = "") -> dict[str, object]:
    if not isinstance(node, dict) or not node:
        return {prefix.removesuffix("."): node}
    return {key: value for name, inner in node.items() for key, value in flat(inner, f"{prefix}{name}.").items()}


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("experiment", ["default", *EXPERIMENTS])
def test_every_experiment_composes_at_every_scale(experiment: str, scale: str):
    chosen = [] if experiment == "default" else [f"+experiment={experiment}"]
    config = flat(check.as_dict(composed(f"scale={scale}", *chosen, *SCALES[scale])))
    file = GOLDEN / scale / f"{experiment}.yaml"
    if os.environ.get("OPD_UPDATE_GOLDEN"):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(yaml.safe_dump(config))
    assert config == yaml.safe_load(file.read_text())


def test_the_default_is_table_1():
    config = flat(check.as_dict(composed("scale=qwen3_4b")))
    assert {key: config[key] for key in TABLE_1} == TABLE_1


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_an_experiment_names_itself_and_says_how_it_is_run(experiment: str):
    first, second, *_ = (cli.CONF / "experiment" / f"{experiment}.yaml").read_text().splitlines()
    assert first == "# @package _global_"
    assert second == f"# python -m opd.train +experiment={experiment}"
    assert composed(f"+experiment={experiment}").name == experiment


def test_low_lr_is_a_tenth_at_every_scale():
    assert composed("scale=qwen3_4b", "+experiment=low_lr").optim.lr == 1e-6
    assert composed("+experiment=low_lr").optim.lr == pytest.approx(composed().optim.lr / 10)


def test_mis_is_the_default_under_its_own_name():
    ours, default = (check.as_dict(config) for config in (composed("+experiment=mis"), composed()))
    assert records.changed_keys(ours, default) == ["name"]


def test_the_hash_is_of_what_a_run_computes():
    base = records.run_id(check.as_dict(composed()))
    for same in ("paths.outputs=elsewhere", "study=other", "recipes.small.steps=7", "paths.data=x"):
        assert records.run_id(check.as_dict(composed(same))) == base
    assert records.run_id(check.as_dict(composed("seed=1"))) == base.replace("-s0", "-s1")
    for other in ("gamma=0.5", "optim.lr=0.5", "evaluate.k=4", "recipes.large.steps=7"):
        assert records.run_id(check.as_dict(composed(other))) != base


def test_a_knob_of_every_method_file_is_a_parameter_of_its_function():
    for group in check.MODULES:
        for file in (cli.CONF / group).glob("*.yaml"):
            if file.stem != "base":
                given = OPEN.get(file.stem, [])
                check.check_node(group, getattr(composed_unchecked(f"{group}={file.stem}", *given), group))


def composed_unchecked(*overrides: str) -> RunConfig:
    from opd.config import parse

    cli.register_resolvers()
    with initialize_config_dir(str(cli.CONF), version_base="1.3"):
        return parse(cli.resolved(compose("config", overrides=list(overrides))))
