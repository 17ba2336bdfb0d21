"""Every experiment at every scale composes to the values committed under tests/golden/configs.

OPD_UPDATE_GOLDEN=1 rewrites them; the difference then stands in the commit for a reader to judge.
"""

import functools
import json
import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra import compose, initialize_config_dir

from opd import cli
from opd.check import config as check
from opd.config import identity
from opd.config.flat import flat
from opd.config.schema import RunConfig
from opd.errors import UserError
from opd.records import run_dir as records
from tests.goldens import goldens, write_goldens
from tests.integration.conftest import composed as composed_once

EXPERIMENTS = sorted(file.stem for file in (cli.CONF / "experiment").glob("*.yaml"))
SCALES = {
    "tiny": [],
    "small": [],
    "qwen3_0_6b": [],
    "qwen3_4b": [],
    "own": ["student.model=student", "scale.ladder=[a,b,c]", "prompts.source.file=train.jsonl"],
}
# What a method file leaves open.
OPEN = {"by_domain": ["ensemble.domain={addition: 0}"]}
# Which experiment is the arm of each claim that this project reproduces; its other arms and baselines, likewise.
CLAIMS = {
    "naive-collapses": ["naive"],
    "low-lr-stable-but-slow": ["low_lr"],
    "tis-collapses-late": ["tis"],
    "mis-best": ["mis"],
    "longer-responses-help": ["half_length", "mis", "double_length"],
    "more-epochs-help": ["mis", "two_epochs"],
    "larger-teachers-do-not-help-much": ["teacher_smallest", "teacher_second", "teacher_third", "teacher_largest"],
    "group-size-does-not-help-much": ["one_sample", "mis", "eight_samples"],
    "temperature-one-is-best": ["temperature_0_1", "temperature_0_5", "mis", "temperature_1_2"],
    "gamma": ["mis", "gamma_0_1", "gamma_0_5"],
    "entropy-bonus": ["mis", "entropy_bonus"],
    "whitening": ["whitening_none", "whitening_sample", "whitening_group", "mis"],
    "naive-k3-collapses": ["naive_k3"],
    "hellinger": ["hellinger"],
    "tsallis": ["tsallis"],
    "jensen": ["jensen_shannon"],
    "hard-switch-mean": ["hard_switch"],
    "hard-switch-best": ["hard_switch"],
    "soft-switch-par": ["soft_switch"],
    "arithmetic-par": ["arithmetic"],
    "geometric-par": ["geometric"],
    "control-token-par": ["control_token"],
    "random-worst": ["random"],
    "kl-70-100-mean-max": ["kl_70_100"],
    "kl-70-100-mean-last": ["kl_70_100"],
    "kl-70-100-best-last": ["kl_70_100"],
    "kl-70-100-best-max": ["kl_70_100"],
    "kl-0-30-collapses": ["kl_0_30"],
    "kl-30-70-collapses": ["kl_30_70"],
    "student-entropy-0-30-collapses": ["student_entropy_0_30"],
    "teacher-entropy-0-30": ["teacher_entropy_0_30"],
    "teacher-entropy-70-100-collapses": ["teacher_entropy_70_100"],
    "gsm8k-full-beats-sampled": ["opd_full", "whitening_none"],
    "prompts-can-be-reused": ["prompts_reused"],
    "token-level-lower-variance": ["mis", "reward_to_go", "sequence_credit"],
    "local-support-matching-beats-sampled": ["local_support"],
    "n-equals-one-works": ["one_sample"],
    "default-teacher-is-reference": ["self_teacher"],
}
# A reward alone, supervised distillation and a second round of fine-tuning are no config of `opd.train`.
NO_ARM = {
    "gsm8k-opd-beats-rl",
    "gsm8k-starting-points",
    "aime24-opd",
    "aime24-off-policy",
    "continual-learning-recovers",
}
CLAIMS_FILE = Path(__file__).parents[2].parent / "shared" / "reference" / "claims.yaml"
# What the published arms differ in from the published default, as their sources state it.
STATED = {
    "naive": {"rollout_correction._target_": "opd.objective.rollout_correction.none"},
    "low_lr": {"optim.lr": 1e-6},
    "half_length": {"max_response_length": 4096, "evaluate.max_response_length": 4096},
    "double_length": {"max_response_length": 16384, "evaluate.max_response_length": 16384},
    "two_epochs": {"epochs": 2},
    "teacher_smallest": {"teacher.models": ["Qwen/Qwen3-4B"]},
    "teacher_second": {"teacher.models": ["Qwen/Qwen3-8B"]},
    "teacher_third": {"teacher.models": ["Qwen/Qwen3-14B"]},
    "teacher_largest": {"teacher.models": ["Qwen/Qwen3-32B"]},
    "one_sample": {"samples_per_prompt": 1},
    "eight_samples": {"samples_per_prompt": 8},
    "temperature_0_1": {"rollout.temperature": 0.1, "teacher.temperature": 0.1, "evaluate.temperature": 0.7},
    "temperature_0_5": {"rollout.temperature": 0.5, "teacher.temperature": 0.5, "evaluate.temperature": 0.7},
    "temperature_1_2": {"rollout.temperature": 1.2, "teacher.temperature": 1.2, "evaluate.temperature": 0.7},
    "gamma_0_1": {"gamma": 0.1},
    "gamma_0_5": {"gamma": 0.5},
    "entropy_bonus": {"signal.entropy": 0.01},
    "whitening_none": {"whitening": "none"},
    "whitening_sample": {"whitening": "sample"},
    "whitening_group": {"whitening": "group"},
    "hard_switch": {"teacher.models": ["Qwen/Qwen3-4B", "Qwen/Qwen3-8B", "Qwen/Qwen3-14B", "Qwen/Qwen3-32B"]},
    "prompts_reused": {"prompts.source.limit": 7680, "epochs": 10},
}
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
    "signal.divergence": 1.0,
    "signal.near_start": 0.0,
    "signal.reward": 0.0,
    "signal.entropy": 0.0,
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


@functools.cache
def composed(*overrides: str) -> RunConfig:
    """The config of `scale=tiny`, or of the scale that comes first."""
    first = [] if overrides and overrides[0].startswith("scale=") else ["scale=tiny"]
    return composed_once([*first, *overrides])


def composed_at(scale: str, experiment: str) -> dict[str, object]:
    """By dotted key."""
    chosen = [] if experiment == "default" else [f"+experiment={experiment}"]
    return flat(check.as_dict(composed(f"scale={scale}", *chosen, *SCALES[scale])))


@functools.cache
def rewrite(scale: str) -> None:
    """All of a scale at once: what an experiment differs in from a new default is not what it differed in before."""
    write_goldens(scale, {name: composed_at(scale, name) for name in ["default", *EXPERIMENTS]})


def said(config: dict[str, object]) -> dict[str, str]:
    """Each value as JSON, in which 1, 1.0 and true are three."""
    return {key: json.dumps(value, sort_keys=True) for key, value in config.items()}


def cases() -> list[Any]:
    """Every experiment at `tiny` and at one of the three other scales; the rest apart."""
    return [
        pytest.param(experiment, scale, marks=[] if number in (0, 1 + place % 3) else [pytest.mark.apart])
        for place, experiment in enumerate(["default", *EXPERIMENTS])
        for number, scale in enumerate(SCALES)
    ]


@pytest.mark.parametrize(("experiment", "scale"), cases())
def test_every_experiment_composes_at_every_scale(experiment: str, scale: str):
    if os.environ.get("OPD_UPDATE_GOLDEN"):
        rewrite(scale)
    assert said(composed_at(scale, experiment)) == said(goldens(scale)[experiment])


@pytest.mark.parametrize("scale", SCALES)
def test_no_value_is_committed_of_an_experiment_that_is_not_there(scale: str):
    assert goldens(scale).keys() == {"default", *EXPERIMENTS}


def test_the_default_is_table_1():
    config = flat(check.as_dict(composed("scale=qwen3_4b")))
    assert {key: config[key] for key in TABLE_1} == TABLE_1


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_an_experiment_names_itself_and_says_how_it_is_run(experiment: str):
    first, second, third, *_ = (cli.CONF / "experiment" / f"{experiment}.yaml").read_text().splitlines()
    assert first == "# @package _global_"
    assert second == f"# python -m opd.train +experiment={experiment}"
    assert third.startswith("# ")
    assert composed("scale=tiny", f"+experiment={experiment}").name == experiment


@pytest.mark.parametrize("experiment", STATED)
def test_at_the_published_scale_an_arm_has_its_published_numbers(experiment: str):
    config = flat(check.as_dict(composed("scale=qwen3_4b", f"+experiment={experiment}")))
    assert {key: config[key] for key in STATED[experiment]} == STATED[experiment]


def test_every_claim_has_its_arms():
    assert {name for arms in CLAIMS.values() for name in arms} <= set(EXPERIMENTS)
    if CLAIMS_FILE.exists():
        assert {claim["id"] for claim in yaml.safe_load(CLAIMS_FILE.read_text())["claims"]} == CLAIMS.keys() | NO_ARM


@pytest.mark.parametrize(
    ("scale", "twins"),
    [
        ("tiny", {"mis", "teacher_third", "teacher_largest"}),
        pytest.param("qwen3_4b", {"mis", "teacher_smallest"}, marks=pytest.mark.apart),
    ],
)
def test_arms_of_the_same_scale_are_different_runs(scale: str, twins: set[str]):
    """But for the default under its own name, and the teacher that the default has anyway."""
    seen: dict[str, str] = {}
    for experiment in ["default", *EXPERIMENTS]:
        chosen = [] if experiment == "default" else [f"+experiment={experiment}"]
        config = check.as_dict(composed(f"scale={scale}", *chosen))
        key = identity.config_hash(config | {"name": "same"})
        assert key not in seen or experiment in twins, (scale, experiment, seen[key])
        seen.setdefault(key, experiment)


def test_a_reused_set_of_prompts_is_as_many_steps_at_every_scale():
    for scale in ("tiny", "qwen3_4b"):
        config = composed(f"scale={scale}", "+experiment=prompts_reused")
        source = check.as_dict(config)["prompts"]["source"]
        assert config.epochs * (source.get("num") or source.get("limit")) == 150 * config.batch_size


def test_a_place_that_the_ladder_does_not_have_is_said_in_one_sentence():
    for experiment in ("teacher_smallest", "teacher_third", "teacher_largest"):
        with pytest.raises(UserError, match=r"teacher\.models"):
            composed("scale=own", "student.model=s", "prompts.source.file=f", f"+experiment={experiment}")


def test_low_lr_is_a_tenth_at_every_scale():
    assert composed("scale=qwen3_4b", "+experiment=low_lr").optim.lr == 1e-6
    assert composed("+experiment=low_lr").optim.lr == pytest.approx(composed().optim.lr / 10)


def test_mis_is_the_default_under_its_own_name():
    ours, default = (check.as_dict(config) for config in (composed("+experiment=mis"), composed()))
    assert records.changed_keys(ours, default) == ["name"]


def test_the_hash_is_of_what_a_run_computes():
    base = identity.run_id(check.as_dict(composed()))
    for same in ("paths.outputs=elsewhere", "study=other", "recipes.small.steps=7", "paths.data=x"):
        assert identity.run_id(check.as_dict(composed(same))) == base
    assert identity.run_id(check.as_dict(composed("seed=1"))) == base.replace("-s0", "-s1")
    for other in ("gamma=0.5", "optim.lr=0.5", "evaluate.k=4", "recipes.large.steps=7"):
        assert identity.run_id(check.as_dict(composed(other))) != base


@pytest.mark.filterwarnings("ignore:In .*Defaults list is missing:UserWarning")
def test_a_knob_of_every_method_file_is_a_parameter_of_its_function():
    for group in check.MODULES:
        for file in (cli.CONF / group).glob("*.yaml"):
            if file.stem != "base":
                with initialize_config_dir(str(cli.CONF), version_base="1.3"):
                    node = cli.resolved(compose(f"{group}/{file.stem}", overrides=OPEN.get(file.stem, [])))[group]
                check.check_node(group, node)
