"""What a causal model does after its layers: what its output head reads, and what becomes of the head's products.

Families differ in what they do with the logits. What they say of it in their configs is known here, and `check_head`
tries it: a family that does anything else is refused, however small its weights are.
"""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from opd.errors import UserError, first_line
from opd.objective.head import Head

# Config keys of a cap on the logits: cap · tanh(logits / cap).
CAPS = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")

# Config keys of a factor of the logits, and the factor that their value means.
SCALES: dict[str, Callable[[float], float]] = {
    "logits_scaling": lambda value: 1 / value,
    "logit_scale": lambda value: value,
    "lm_head_multiplier": lambda value: value,
}
# Families in which such a key means another factor; MiniCPM3 scales what its head reads.
EXCEPTIONS: dict[tuple[str, str], Callable[[float], float]] = {
    ("hyperclovax", "logits_scaling"): lambda value: value,
    ("minicpm3", "logits_scaling"): lambda value: 1.0,
}

# The size of the largest logit that a trial makes: beyond every cap in use, which are 15 to 50.
TRIALS = (3.0, 100.0)


def output_head(model: PreTrainedModel) -> Head:
    """The head with the model's current weights; within FSDP's forward, the gathered ones."""
    module: Any = model.get_output_embeddings()
    config = model.config.get_text_config()
    rows = getattr(config, "unpadded_vocab_size", None)  # what some families cut off after the head
    head = Head(module.weight, getattr(module, "bias", None), *transform(config))
    return head if rows is None or rows == len(head) else head.map(lambda tensor: tensor[:rows])


def transform(config: PreTrainedConfig) -> tuple[float, float | None]:
    """The scale and the cap of the logits of a model with this config."""
    scale, settings = 1.0, vars(config)
    for key, factor in SCALES.items():
        if settings.get(key) is not None:
            scale *= EXCEPTIONS.get((config.model_type, key), factor)(float(settings[key]))
    caps = [float(settings[key]) for key in CAPS if settings.get(key)]
    return scale, caps[0] if caps else None


def head_inputs(model: PreTrainedModel, *given: Tensor, **more: Any) -> Float[Tensor, "row time width"]:
    """What the output head reads in the model's forward pass of these inputs; no logits are made."""
    read: list[Tensor] = []

    def keep(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        read.append(inputs[0])
        return inputs[0][:, :0], *inputs[1:]

    with _before_head(model, keep):
        model(*given, use_cache=False, **more)
    (states,) = read
    return states


@torch.inference_mode()
def check_head(model: PreTrainedModel, *, key: str) -> None:
    """Tries what is known of the head, in one pass: on the model's own hidden states, and on large ones that would show
    any cap, factor or offset, however small the weights are.

    Raises:
        UserError: where the family's forward pass does anything else, or the logits are not finite; `key` names the
            model.
    """
    family = type(model).__name__
    module: Any = model.get_output_embeddings()
    if not isinstance(module, nn.Linear):
        raise UserError(f"{key}: {family} has no output head that is one linear map, which is not supported")
    ids = torch.tensor([[0, 1, 2]], device=model.device) % module.weight.shape[0]
    generator, read = torch.Generator().manual_seed(0), list[Tensor]()

    def add_trials(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        states, trials = inputs[0], [inputs[0]]
        for size in TRIALS:
            trial = torch.randn(states.shape, generator=generator).to(states)
            trials.append(trial * (size / (trial @ module.weight.T).abs().max().clamp(min=1e-6)))
        read.append(torch.cat(trials, 1))
        return read[-1], *inputs[1:]

    try:
        with _before_head(model, add_trials):
            logits = model(ids, use_cache=False).logits.float()
    except Exception as error:  # of any type, where a family needs more than token ids
        raise UserError(f"{key}: {family} cannot read text alone ({first_line(error).rstrip('.')})") from error
    tokens = ids.shape[1] * (1 + len(TRIALS))
    if [states.shape[:2] for states in read] != [(1, tokens)]:
        raise UserError(f"{key}: {family} does not read its output head once for each token, which is not supported")
    head = output_head(model)
    ours = head.logits_(logits.new_empty(tokens, len(head)), read[0][0], 1.0)
    parts = [slice(start, start + ids.shape[1]) for start in range(0, tokens, ids.shape[1])]
    if not torch.isfinite(logits[:, parts[0]]).all():
        raise UserError(f"{key}: its logits are not finite; the weights are damaged")
    tolerance = 1e-3 if model.dtype in (torch.float32, torch.float64) else 3e-2

    def known(part: slice) -> bool:
        expected = logits[0, part]
        return torch.allclose(ours[part], expected, rtol=tolerance, atol=tolerance * float(expected.abs().max()))

    if logits.shape != (1, *ours.shape) or not all(map(known, parts)):
        raise UserError(
            f"{key}: {family} changes its logits after the output head in a way that is not known here, which is not "
            "supported"
        )


def _before_head(model: PreTrainedModel, hook: Callable[..., Any]) -> Any:
    """A context in which `hook` sees and replaces what the output head reads."""
    module: Any = model.get_output_embeddings()
    return module.register_forward_pre_hook(hook)
