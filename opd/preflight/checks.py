"""A preflight's checks of the loaded models on a few responses of the student."""

import math

import torch

from opd.data.batch import Rollout, Sampling
from opd.errors import UserError
from opd.model.widths import width
from opd.step.run import Run
from opd.teacher.load import scorer_loader
from opd.teacher.local import LocalTeachers

NUM_PROMPTS, NUM_TOKENS = 4, 32  # prompts of a rank, tokens of a response

# A teacher whose mean entropy is this share of a uniform distribution's has learned nothing.
UNIFORM = 0.95

# The most that the student's log-probs as learner and as teacher may differ on average: rounding, by precision.
AGREEMENT = {"float32": 1e-4, "bfloat16": 0.05, "int8": 0.1, "float8": 0.3, "int4": 0.6}


def check_models(run: Run) -> list[tuple[str, str, str]]:
    """Rows of what was measured, its value, and the value from which a run is refused; all ranks must call this.

    Raises:
        UserError: for a teacher that is nearly uniform, or a student that scores differently as a teacher.
    """
    config, ranks = run.config, run.ranks
    sampling = Sampling(1, min(NUM_TOKENS, config.max_response_length), run.rollout.temperature, 1.0, 0)
    rollout = run.sampler.sample(run.prompts[:NUM_PROMPTS], sampling, key=(config.seed, 0, 2))
    rollout = rollout.widened(ranks.max(rollout.tokens.shape[1]))
    most = math.log(run.policy.model.get_output_embeddings().weight.shape[0])
    rows = []
    for index, model in enumerate(config.teacher.models):
        scores = run.teachers.score(rollout, [index])
        entropy = _mean(run, rollout, scores.entropy[index])
        if entropy >= UNIFORM * most:
            raise UserError(
                f"teacher.models.{index}={model!r}: its distributions are nearly uniform (entropy {entropy:.2f} of at "
                f"most {most:.2f} nats), so it can teach nothing; its weights are untrained or do not fit its head"
            )
        value = "unknown" if math.isnan(entropy) else f"{entropy:.3f}"  # servers give no entropies
        rows.append((f"teacher.models.{index}: mean entropy, nats", value, f"{UNIFORM * most:.3f}"))
    if isinstance(run.teachers, LocalTeachers):
        run.teachers.score(rollout, [])  # unloads them before the student is loaded a second time
    student = run.policy.scores(rollout).logp
    return [*rows, _as_teacher(run, rollout, student), _sampler(run, rollout, student)]


def _as_teacher(run: Run, rollout: Rollout, student: torch.Tensor) -> tuple[str, str, str]:
    config = run.config
    load = scorer_loader("self", config, run.ranks, "student.model", vocab_size=width(run.policy.model.config))
    itself = LocalTeachers([load]).score(rollout, [0]).logp[0]
    difference = _mean(run, rollout, (student - itself).abs())
    bound = max(AGREEMENT[config.teacher.dtype], AGREEMENT[config.compute.dtype])
    name = "student as its own teacher: mean |log ratio|"
    if config.teacher.temperature != config.rollout["temperature"]:
        return f"{name}, at another teacher.temperature", f"{difference:.2e}", "never"
    if not difference <= bound:
        raise UserError(
            f"teacher: the student's log-probs differ on average by {difference:.2g} from its own as a teacher, where "
            f"rounding explains {bound:g}; student and teachers are not scored alike (teacher.dtype, "
            "teacher.temperature)"
        )
    return name, f"{difference:.2e}", f"{bound:g}"


def _sampler(run: Run, rollout: Rollout, student: torch.Tensor) -> tuple[str, str, str]:
    difference = _mean(run, rollout, (student - rollout.rollout_logp).abs())
    return "sampler against learner: mean |log ratio|", f"{difference:.2e}", "never"


def _mean(run: Run, rollout: Rollout, numbers: torch.Tensor) -> float:
    """The mean over all ranks' response tokens."""
    sums = {"sum": float(numbers[rollout.mask].double().sum()), "count": float(rollout.mask.sum())}
    total = run.ranks.sum(sums)
    return total["sum"] / total["count"]
