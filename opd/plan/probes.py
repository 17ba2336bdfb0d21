"""What a preflight tries on a few responses of the student: teachers that know something, a student that is itself."""

import math

import torch

from opd.data.batch import Rollout, Sampling
from opd.errors import UserError
from opd.step.run import Run
from opd.teacher.load import scorer_loader
from opd.teacher.local import LocalTeachers

# Prompts a rank, and tokens of a response.
NUM_PROMPTS, NUM_TOKENS = 4, 32

# A teacher whose mean entropy is this share of a uniform distribution's has learned nothing.
UNIFORM = 0.95

# The most that the student's log-probs may differ, on average, from its own as a teacher: rounding, by precision.
AGREEMENT = {"float32": 1e-4, "bfloat16": 0.05, "int8": 0.1}


def probe(run: Run) -> list[tuple[str, str, str]]:
    """What was tried, what came of it, and from where on it would have been refused; all ranks must ask.

    Raises:
        UserError: for a teacher that is nearly uniform, or a student that is not its own equal as a teacher.
    """
    config, ranks = run.config, run.ranks
    sampling = Sampling(1, min(NUM_TOKENS, config.max_response_length), run.rollout.temperature, 1.0, 0)
    rollout = run.sampler.sample(run.prompts[:NUM_PROMPTS], sampling, key=(config.seed, 0, 2))
    rollout = rollout.widened(ranks.most(rollout.tokens.shape[1]))
    most = math.log(run.policy.model.get_output_embeddings().weight.shape[0])
    rows = []
    for index, model in enumerate(config.teacher.models):
        scores = run.teachers.score(rollout, [index])
        entropy = _mean(run, rollout, scores.entropy[index])
        if entropy >= UNIFORM * most:
            raise UserError(
                f"teacher.models.{index}={model!r}: its distributions are nearly uniform (entropy {entropy:.2f} of at "
                f"most {most:.2f} nats), so it can teach nothing; its weights are untrained or not those of its head"
            )
        # A server gives no entropies.
        found = "unknown" if math.isnan(entropy) else f"{entropy:.3f}"
        rows.append((f"teacher.models.{index}: mean entropy, nats", found, f"{UNIFORM * most:.3f}"))
    if isinstance(run.teachers, LocalTeachers):
        run.teachers.score(rollout, [])  # these leave before the student comes a second time
    student = run.policy.scores(rollout).logp
    return [*rows, _own_equal(run, rollout, student), _sampler(run, rollout, student)]


def _own_equal(run: Run, rollout: Rollout, student: torch.Tensor) -> tuple[str, str, str]:
    config = run.config
    itself = LocalTeachers([scorer_loader("self", config, run.ranks, "student.model")]).score(rollout, [0]).logp[0]
    found = _mean(run, rollout, (student - itself).abs())
    bound = max(AGREEMENT[config.teacher.dtype], AGREEMENT[config.compute.dtype])
    name = "student as its own teacher: mean |log ratio|"
    if config.teacher.temperature != config.rollout["temperature"]:
        return f"{name}, at another teacher.temperature", f"{found:.2e}", "any"
    if not found <= bound:
        raise UserError(
            f"teacher: the student's log-probs are on average {found:.2g} from its own as a teacher, where rounding "
            f"explains {bound:g}; student and teachers are not scored alike (teacher.dtype, teacher.temperature)"
        )
    return name, f"{found:.2e}", f"{bound:g}"


def _sampler(run: Run, rollout: Rollout, student: torch.Tensor) -> tuple[str, str, str]:
    found = _mean(run, rollout, (student - rollout.rollout_logp).abs())
    return "sampler against learner: mean |log ratio|", f"{found:.2e}", "any"


def _mean(run: Run, rollout: Rollout, numbers: torch.Tensor) -> float:
    """The mean over all ranks' response tokens."""
    sums = {"sum": float(numbers[rollout.mask].double().sum()), "count": float(rollout.mask.sum())}
    total = run.ranks.total(sums)
    return total["sum"] / total["count"]
