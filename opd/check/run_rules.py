"""Rules on optimizer, evaluation, prompts, checkpoints and the plan of a run."""

from opd.check.rule import rule
from opd.config.schema import DataMixture, Dataset, RunConfig


@rule("optim.warmup_steps", "num_steps", reason="the learning rate would never reach optim.lr")
def no_warm_up(config: RunConfig) -> str | None:
    if config.num_steps is None or config.optim.warmup_steps < config.num_steps:
        return None
    return f"warmup_steps={config.optim.warmup_steps} must be below num_steps={config.num_steps}"


@rule("evaluate.k", "evaluate.temperature", reason="greedy answers are all alike")
def greedy_answers(config: RunConfig) -> str | None:
    if config.evaluate.temperature > 0 or config.evaluate.k == 1:
        return None
    return f"set evaluate.k=1 instead of {config.evaluate.k}, or a temperature above 0"


@rule("evaluate.temperature", "evaluate.top_p", "evaluate.top_k", reason="greedy answers ignore top_p and top_k")
def truncated_greedy(config: RunConfig) -> str | None:
    truncates = config.evaluate.top_p < 1 or config.evaluate.top_k > 0
    greedy = config.evaluate.temperature == 0
    return "set top_p=1 and top_k=0, or a temperature above 0" if greedy and truncates else None


@rule("prompts.source.weights", "prompts.source.sources", reason="every set of a mixture has a weight")
def unweighed_sets(config: RunConfig) -> str | None:
    source = config.prompts.source
    if not isinstance(source, DataMixture) or source.weights is None or source.weights.keys() == source.sources.keys():
        return None
    return f"give one to each of {', '.join(source.sources)}, not to {', '.join(source.weights) or 'none'}"


@rule("prompts.source", "evaluate.sources", reason="a stream may have no end")
def endless_stream(config: RunConfig) -> str | None:
    source = config.prompts.source
    named = source.sources if isinstance(source, DataMixture) else {"prompts.source": source}
    for name, each in [*named.items(), *config.evaluate.sources.items()]:
        if isinstance(each, Dataset) and each.streaming and each.limit is None:
            return f"set the limit of {name} (rows), or streaming=false"
    return None


@rule("compute.attention", "compute.dtype", reason="flash attention computes in 16 bits")
def flash_in_32_bits(config: RunConfig) -> str | None:
    if not (config.compute.attention or "").startswith("flash"):
        return None
    if config.compute.dtype == "float32":
        return "set compute.dtype=bfloat16, or compute.attention=sdpa"
    return "set teacher.dtype=bfloat16, or compute.attention=sdpa" if config.teacher.dtype == "float32" else None


@rule("hub.push", reason="a repository of the hub is OWNER/NAME, with letters, digits, -, _ and .")
def no_repository(config: RunConfig) -> str | None:
    if (name := config.hub.push) is None:
        return None
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError:
        return f"{name!r} is none"
    return f"{name!r} has no owner" if "/" not in name else None


def without_problems(config: RunConfig, *, trains: bool) -> str | None:
    """The refusal of a dataset that comes neither from a file nor from the hub; of prompts only where a run trains."""
    sources = {f"evaluate.sources.{name}": source for name, source in config.evaluate.sources.items()}
    if trains:
        source = config.prompts.source
        several = source.sources if isinstance(source, DataMixture) else {}
        sources |= {f"prompts.source.sources.{name}": each for name, each in several.items()} or {
            "prompts.source": source
        }
    for key, source in sources.items():
        if isinstance(source, Dataset) and source.file is None and source.hub is None:
            return (
                f"{key}.file: has no value; give it a file of problems (JSONL, CSV or Parquet), or name a dataset of "
                f"the Hugging Face Hub as {key}.hub=OWNER/NAME"
            )
    return None


@rule("plan.ranks", "plan.gpu_gib", reason="a plan needs both to describe a machine")
def half_a_machine(config: RunConfig) -> str | None:
    if (config.plan.ranks is None) == (config.plan.gpu_gib is None):
        return None
    return "give both, or null for both"


@rule("plan", "preflight", reason="only a preflight plans for another machine")
def plan_without_preflight(config: RunConfig) -> str | None:
    return "set preflight=true" if config.plan.ranks is not None and not config.preflight else None


@rule("checkpoint.every", "checkpoint.keep", reason="without periodic checkpoints there is only one to keep")
def nothing_to_keep(config: RunConfig) -> str | None:
    if config.checkpoint.every or config.checkpoint.keep == 1:
        return None
    return "set checkpoint.every above 0, or checkpoint.keep=1"
