"""From a checked config to the things a run is made of: models, prompts, stages."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from opd.check.config import BUILT_BY_THE_RUN, load_choice
from opd.check.signal import graded_by, has_weight, terms, uses_anchor, uses_grades
from opd.check.signatures import imported
from opd.checkpoint.background import Background
from opd.checkpoint.store import Learned
from opd.config.schema import AnySource, Called, DataMixture, Generated, RunConfig
from opd.config.steps import steps
from opd.data import dataset, mixture, prompts, tasks
from opd.data.batch import Prompt, Sampling
from opd.data.control import Control, encode as encode_control
from opd.data.problem import Problem
from opd.errors import UserError
from opd.model.load import check_saving, end_with, load_model, load_tokenizer, max_positions, stop_token_ids
from opd.model.lora import add_adapters
from opd.model.optim import Optimizer
from opd.model.policy import Policy
from opd.model.rope import fix_frequencies
from opd.model.sharded import Root, shard
from opd.model.texts import Reading
from opd.model.widths import cut, unused_ids
from opd.objective.filter import eligible
from opd.objective.support import Support
from opd.printable import warn
from opd.ranks.dist import Ranks
from opd.recipes.make import locate, make_models
from opd.records.run_dir import RunDir
from opd.rollout.protocol import Sampler, StudentSampler
from opd.rollout.turns import Turns
from opd.step import startup_checks
from opd.step.learn import Exact, Signal
from opd.step.methods import bind, bound_ensemble
from opd.step.run import Run
from opd.step.stages import FullReference, Rewards, sampled_reference
from opd.teacher.load import build_teachers, full_distributions, load_anchor
from opd.teacher.local import Teachers
from opd.watch.pages import Pages
from opd.watch.throughput import Meter

# Families whose backward pass asks for training mode.
TRAINS_WITH_DROPOUT = ("reformer",)


def assemble(config: RunConfig, folder: RunDir, ranks: Ranks, readings: Sequence[Reading] | None = None) -> Run:
    """Loads and builds everything that `config` names; the student has its starting weights.

    `readings` are those of `startup_checks.load_readings`, if they are loaded already.

    Raises:
        UserError: for a model or prompt set that is missing, damaged or does not fit the others.
    """
    if config.mini_batch_size % ranks.size:
        raise UserError(
            f"mini_batch_size={config.mini_batch_size}: must be a multiple of the {ranks.size} ranks, which share its "
            "prompts evenly"
        )
    ranks.on_main(lambda: make_models(config))
    texts, models = startup_checks.check(config, ranks, readings)
    tokenizer = texts.tokenizer
    student = load_student(config, tokenizer)
    further = cut(student, texts.vocab_size, key="student.model")
    training = load_prompts(config.prompts.source, config, tokenizer, key="prompts.source")
    tokens = control_tokens(config, tokenizer)
    check_length("max_response_length", config.max_response_length, training, student, before=tokens.longest)
    num_steps = steps(config, len(training))
    benchmarks, allowed = load_benchmarks(config, tokenizer, student), _bind_eligible(config, student, tokenizer)
    if config.student.lora is not None:
        add_adapters(student, config.student.lora, seed=config.seed)
    root = shard(student, ranks, config.compute, learns=True)
    policy = Policy(root, ranks, temperature=config.rollout["temperature"], **asdict(config.memory))
    longest = tokens.longest + max(len(prompt.token_ids) for prompt in training) + config.max_response_length
    startup_checks.check_positions(config, models, longest)
    teachers = build_teachers(config, texts, ranks, longest=longest)
    sampler = build_sampler(config, root, tokenizer)
    mean_of_several = config.mixes_distributions and not config.uses_vocabulary
    evaluation_sampler = with_environment(config, sampler, tokenizer, ranks)
    return Run(
        config=config,
        folder=folder,
        num_steps=num_steps,
        prompts=training,
        benchmarks=benchmarks,
        learned=Learned(
            student,
            base=locate("self", config)[0],
            tokenizer=tokenizer,
            optimizer=Optimizer(student, config.optim, num_steps=num_steps),
            further=further,
        ),
        policy=policy,
        teachers=teachers,
        sampler=sampler,
        evaluation_sampler=evaluation_sampler,
        responses=bind("responses", config.responses)(sampler=evaluation_sampler),
        context=bind("context", config.context)(),
        rollout=Sampling(
            num_samples=config.samples_per_prompt,
            max_tokens=config.max_response_length,
            temperature=config.rollout["temperature"],
            top_p=config.rollout["top_p"],
            top_k=config.rollout["top_k"],
        ),
        control=tokens,
        unused_ids=unused_ids(tokenizer, texts.vocab_size),
        divergence=bind("divergence", config.divergence)(),
        ensemble=bound_ensemble(config),
        reference=FullReference(full_distributions(policy, teachers)) if config.uses_vocabulary else sampled_reference,
        entropy_metric="entropy/teachers_mean" if mean_of_several else "entropy/teacher",
        eligible=allowed,
        filter=bind("filter", config.filter),
        rollout_correction=bind("rollout_correction", config.rollout_correction),
        anchor=load_anchor(config, texts, ranks) if uses_anchor(config) else None,
        reward=Rewards(uses_grades(config), config.shaping),
        learner=build_learner(config, policy, teachers),
        divisor=bind("loss", config.loss),
        ranks=ranks,
        meter=Meter(student, ranks, config.compute.dtype),
        pages=Pages(folder, tokenizer, config.rollouts, main=ranks.main),
        background=Background(asynchronous=config.checkpoint.asynchronous),
        background_ranks=ranks.with_own_group(timeout=config.compute.rank_timeout),
    )


def load_student_tokenizer(config: RunConfig) -> PreTrainedTokenizerBase:
    """The student's tokenizer; recipes that are not built yet are."""
    path, revision = locate("self", config)
    return load_tokenizer(path, revision=revision, key="student.model")


def load_student(config: RunConfig, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """The student with its starting weights, in float32; its texts end as the config says.

    From here on torch computes on `config.threads` threads.
    """
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    path, revision = locate("self", config)
    attention = config.compute.attention
    model = load_model(path, revision=revision, dtype="float32", key="student.model", implementation=attention)
    if model.config.model_type in TRAINS_WITH_DROPOUT:
        raise UserError(
            f"student.model={config.student.model!r}: {type(model).__name__} has no backward pass outside of training "
            "mode, which would drop what the sampler does not; choose another family"
        )
    fix_frequencies(model, config.longest_text)
    end_with(model, tokenizer, config.student.stop_tokens)
    check_saving(model, tokenizer, key=f"student.model={config.student.model!r}")
    return model


def with_environment(config: RunConfig, sampler: Sampler, tokenizer: PreTrainedTokenizerBase, ranks: Ranks) -> Sampler:
    """The sampler, with the environment's replies within its responses."""
    read: Any = partial(tokenizer.decode, skip_special_tokens=True)
    write = partial(
        prompts.reply_ids, tokenizer=tokenizer, template=config.prompts.template, date=template_date(config)
    )
    return Turns(sampler, bind("environment", config.environment)(), ranks, read, write)


def build_sampler(config: RunConfig, root: Root, tokenizer: PreTrainedTokenizerBase) -> StudentSampler:
    """The engine that samples responses from the learner `root`."""
    built = {"root": root, "stop_ids": stop_token_ids(root.model, tokenizer), "pad_id": tokenizer.pad_token_id}
    assert built.keys() == BUILT_BY_THE_RUN["rollout"]
    return bind("rollout", config.rollout)(**built)


def build_learner(config: RunConfig, policy: Policy, teachers: Teachers) -> Signal:
    """What learns the terms that `signal` weighs; a divergence over the vocabulary is learned by a pass of its own."""
    support: Support = bind("support", config.support)()
    weights = {name: weight for name, weight in config.signal.items() if has_weight(weight)}
    sampled = support.kind == "sampled"
    token_terms = {name: imported(terms()[name]) for name in weights if sampled or name != "divergence"}
    return Signal(
        config,
        policy,
        token_terms,
        weights,
        None if sampled else Exact(config, full_distributions(policy, teachers), support),
    )


def control_tokens(config: RunConfig, tokenizer: PreTrainedTokenizerBase) -> Control:
    """What the ensemble puts before the student's prompts: mostly nothing."""
    return encode_control(bound_ensemble(config).prefixes(), tokenizer)


def _bind_eligible(
    config: RunConfig, student: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> Callable[..., Any]:
    """Which response tokens may be learned at all, as the filter's common knobs say."""
    size, ids = student.get_input_embeddings().weight.shape[0], set(config.filter["exclude_ids"])  # pyright: ignore
    if unknown := sorted(index for index in ids if not 0 <= index < size):
        raise UserError(f"filter.exclude_ids: {unknown[0]} is no token of the student, whose ids are 0 to {size - 1}")
    if config.filter["exclude_special"]:
        ids |= set(tokenizer.all_special_ids)
    return partial(eligible, token_ids=sorted(ids), prefix=config.filter["prefix_length"])


def load_problems(source: AnySource, config: RunConfig, *, key: str) -> list[Problem]:
    """The problems of `source`; `key` is the config key to name in a refusal."""
    if isinstance(source, DataMixture):
        sets = {name: load_problems(each, config, key=f"{key}.sources.{name}") for name, each in source.sources.items()}
        try:
            return mixture.mix(sets, weights=source.weights, num=source.num, seed=source.seed)
        except UserError as error:
            raise UserError(f"{key}.{error}") from error
    grader = json.dumps(load_choice("grader", source.grader, f"{key}.grader"))
    if isinstance(source, Called):
        problems = bind("problems", source.function)()
    elif isinstance(source, Generated):
        problems = tasks.load(source.split, num=source.num, seed=source.seed, mix=source.mix)
    else:
        data = None if config.paths.data is None else Path(config.paths.data)
        try:
            graded = graded_by(config) if key.startswith("prompts.") else "evaluate.benchmarks"
            problems = dataset.load_problems(source, data_dir=data, graded=graded)
        except UserError as error:
            raise UserError(f"{key}{'.' if str(error).startswith('file=') else ': '}{error}") from error
    return [replace(problem, grader=grader) for problem in problems]


def load_prompts(source: AnySource, config: RunConfig, tokenizer: PreTrainedTokenizerBase, *, key: str) -> list[Prompt]:
    """The problems of `source`, encoded as `config.prompts` says; `key` is the config key to name in a refusal."""
    problems = load_problems(source, config, key=key)
    encoded, dropped = prompts.encode(
        problems,
        tokenizer,
        template=config.prompts.template,
        system=config.prompts.system,
        prefix=config.prompts.prefix,
        suffix=config.prompts.suffix,
        max_prompt_length=config.prompts.max_prompt_length,
        environment=bind("environment", config.environment)(),
        date=template_date(config),
        notice=lambda sentence: warn(f"{key}: {sentence}"),
    )
    if lost := prompts.unreadable(encoded, tokenizer):
        warn(
            f"{key}: {len(lost)} of {len(problems)} prompts have characters that the tokenizer does not know, the "
            f"first of them {lost[0]}"
        )
    if dropped:
        warn(
            f"{len(dropped)} of {len(problems)} prompts are longer than prompts.max_prompt_length="
            f"{config.prompts.max_prompt_length} and are left out, the first of them {dropped[0]}"
        )
    return encoded


def template_date(config: RunConfig) -> datetime | None:
    """What a chat template that writes the date gets; None: now."""
    return None if config.prompts.date is None else datetime.fromisoformat(config.prompts.date)


def load_benchmarks(
    config: RunConfig, tokenizer: PreTrainedTokenizerBase, student: PreTrainedModel
) -> dict[str, list[Prompt]]:
    """Every benchmark that `evaluate.benchmarks` names."""
    benchmarks = {
        name: load_prompts(config.evaluate.sources[name], config, tokenizer, key=f"evaluate.sources.{name}")
        for name in config.evaluate.benchmarks
    }
    control = control_tokens(config, tokenizer)
    benchmarks = {name: control.for_evaluation(problems) for name, problems in benchmarks.items()}
    for problems in benchmarks.values():
        check_length("evaluate.max_response_length", config.evaluate.max_response_length, problems, student)
    return benchmarks


def check_length(key: str, length: int, encoded: list[Prompt], student: PreTrainedModel, before: int = 0) -> None:
    """Refuses a response length that leaves the student too few positions after `before` tokens and the longest prompt.

    Raises:
        UserError: with the length that would fit.
    """
    positions, longest = max_positions(student.config), before + max(len(prompt.token_ids) for prompt in encoded)
    if positions is not None and longest + length > positions:
        raise UserError(
            f"{key}={length}: with the longest prompt ({longest} tokens) it is more than the student's "
            f"{positions} positions; at most {positions - longest} fits"
        )
