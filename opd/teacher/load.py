"""From a checked config to the models that score: the teachers, on the engine that is named, and the anchor."""

import os
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from opd.check.engines import engine
from opd.check.signatures import imported
from opd.config.schema import RunConfig
from opd.errors import UserError
from opd.model.int8 import quantize_layers
from opd.model.load import check_weights, load_model, load_tokenizer, same_vocabulary
from opd.model.policy import Policy, Scorer
from opd.model.rope import fix_frequencies
from opd.model.sharded import shard
from opd.model.texts import Texts
from opd.model.widths import cut
from opd.printable import warn
from opd.ranks.dist import Ranks
from opd.recipes.make import locate
from opd.teacher.full_distributions import FullDistributions
from opd.teacher.local import LocalTeachers, Teachers

if TYPE_CHECKING:
    from opd.teacher.server import Server


def build_teachers(config: RunConfig, texts: Texts, ranks: Ranks, *, longest: int) -> Teachers:
    """The run's teachers; `longest` is the most tokens that a prompt and its response have.

    `texts` is the result of `opd.step.startup_checks`. Vocabularies that could not be loaded there are compared here,
    by what the servers report.

    Raises:
        UserError: a teacher is missing, cannot be reached, or does not fit the student or the engine.
    """
    return imported(engine(config).build)(config, texts, ranks, longest)


def full_distributions(policy: Policy, teachers: Teachers) -> FullDistributions:
    """The comparison of full distributions, or of the likeliest tokens where the teachers give those."""
    return FullDistributions(policy, teachers if isinstance(teachers, LocalTeachers) else None)


def _likeliest(config: RunConfig) -> int:
    """How many of the likeliest tokens the teachers return at each position, in addition to the sampled one."""
    return config.support["k"] if config.method("support") == "topk" else 0


def local(config: RunConfig, texts: Texts, ranks: Ranks, longest: int) -> Teachers:
    """Models in this process; see `build_teachers`."""
    return LocalTeachers(
        [scorer_loader(model, config, ranks, key, vocab_size=texts.vocab_size) for key, model in _named(config)],
        keep_hidden=config.uses_vocabulary or config.method("support") != "sampled",
    )


def on_servers(config: RunConfig, texts: Texts, ranks: Ranks, longest: int) -> Teachers:
    """Models on vLLM's OpenAI-compatible servers; see `build_teachers`."""
    from opd.teacher.replicas import Replicas
    from opd.teacher.server import Server, ServerTeachers, run_in_background

    settings = config.teacher.server
    assert settings is not None
    if ranks.size > 1 and settings.patience + settings.timeout >= config.compute.rank_timeout:
        raise UserError(
            f"teacher.server.patience={settings.patience:g} and teacher.server.timeout={settings.timeout:g}: together "
            f"they must be below compute.rank_timeout={config.compute.rank_timeout:g}, which the other ranks wait"
        )
    key = None if settings.api_key_env is None else os.environ.get(settings.api_key_env)
    if settings.api_key_env is not None and not key:
        raise UserError(
            f"teacher.server.api_key_env={settings.api_key_env}: that environment variable is not set; set it to the "
            "servers' key, or set teacher.server.api_key_env=null"
        )
    servers = [
        Server(
            model=locate(model, config)[0],
            replicas=Replicas(
                urls, name=f"teacher.server.urls.{index}", timeout=settings.timeout, patience=settings.patience, key=key
            ),
            longest=longest,
            responses_per_request=settings.responses_per_request,
            concurrency=settings.concurrency,
            likeliest=_likeliest(config),
            vocab_size=texts.vocab_size,
        )
        for index, (model, urls) in enumerate(zip(config.teacher.models, settings.urls, strict=True))
    ]
    loaded_from = run_in_background([server.check() for server in servers], ranks)()
    for (key, model), server, roots in zip(_named(config), servers, loaded_from, strict=True):
        if model != "self" and key not in texts.alike:
            _compare_vocabulary(texts.tokenizer, [server.model, *roots], key=f"{key}={model!r}", say_so=ranks.main)
    unchecked = _check_scores(config, texts, servers, ranks)
    return ServerTeachers(servers, ranks, unchecked)


def _check_scores(config: RunConfig, texts: Texts, servers: Sequence["Server"], ranks: Ranks) -> list[str]:
    """Checks the servers' scores on the main rank; returns what could not be checked, which it says once."""
    from opd.teacher.honest import check_scores, probe
    from opd.teacher.server import run_in_background

    requests = []
    for server, model in zip(servers, config.teacher.models, strict=True):
        text = probe(texts.tokenizer, server.longest)
        place = locate(model, config)[0]
        copy = place if Path(place).is_dir() else None
        if text is not None and ranks.main:
            requests.append(check_scores(server.score, text, name=server.replicas.name, copy=copy))
    unchecked = [sentence for found in run_in_background(requests, ranks)() for sentence in found]
    for sentence in unchecked:
        warn(sentence)
    return unchecked


def on_vllm(config: RunConfig, texts: Texts, ranks: Ranks, longest: int) -> Teachers:
    """vLLM engines in this process; see `build_teachers`."""
    from opd.teacher.vllm import VllmScorer, VllmTeachers
    from opd.teacher.vllm_widths import narrow_loading

    settings = config.teacher.vllm
    assert settings is not None

    def loader(key: str, named: str) -> Callable[[], VllmScorer]:
        source, revision = locate(named, config)
        model = check_weights(source, revision=revision, key=key)
        knobs = {"dtype": config.teacher.dtype, "likeliest": _likeliest(config), **asdict(settings)}
        knobs["narrow"] = partial(narrow_loading, model, texts.vocab_size)
        return lambda: VllmScorer(source, revision=revision, longest=longest, key=key, **knobs)

    return VllmTeachers([loader(key, model) for key, model in _named(config)], ranks)


# By `teacher.dtype`: the precision of products, and what is done to the weights.
PRECISIONS: dict[str, tuple[str, Callable[[PreTrainedModel], None]]] = {
    "float32": ("float32", lambda model: None),
    "bfloat16": ("bfloat16", lambda model: None),
    "int8": ("bfloat16", quantize_layers),
}


def load_anchor(config: RunConfig, texts: Texts, ranks: Ranks) -> Scorer:
    """The model of `shaping.anchor`, always loaded in this process."""
    return scorer_loader(config.shaping.anchor, config, ranks, "shaping.anchor", vocab_size=texts.vocab_size)()


def _named(config: RunConfig) -> list[tuple[str, str]]:
    """The teachers, each with its config key."""
    return [(f"teacher.models.{index}", model) for index, model in enumerate(config.teacher.models)]


def scorer_loader(model: str, config: RunConfig, ranks: Ranks, key: str, *, vocab_size: int) -> Callable[[], Scorer]:
    """What loads `model` as a teacher of this vocabulary into this process; `key` is the config key to name in a
    refusal.
    """
    path, revision = locate(model, config)

    def load() -> Scorer:
        dtype, convert = PRECISIONS[config.teacher.dtype]
        attention = config.compute.attention
        loaded = load_model(path, revision=revision, dtype=dtype, key=key, implementation=attention)
        loaded.requires_grad_(False)
        cut(loaded, vocab_size, key=key)
        fix_frequencies(loaded, config.longest_text)
        convert(loaded)
        root = shard(loaded, ranks, config.compute, learns=False)
        return Scorer(root, ranks, temperature=config.teacher.temperature, **asdict(config.memory))

    return load


def _compare_vocabulary(student: PreTrainedTokenizerBase, places: list[str], *, key: str, say_so: bool) -> None:
    """Compares the student's vocabulary with that at the first of `places` which can be loaded here."""
    for place in dict.fromkeys(places):
        try:
            theirs = load_tokenizer(place, revision=None, key=key)
        except UserError:
            continue
        return same_vocabulary(student, theirs, key=key)
    if say_so:
        warn(f"{key}: its tokenizer cannot be loaded here, so its vocabulary is not compared with the student's")
