"""AdamW with a clipped gradient and a schedule that is a pure function of the step."""

import math

import torch
from torch import nn

from opd.config.schema import Optim
from opd.model.sharded import full_tensor


def learning_rate(step: int, *, num_steps: int, optim: Optim) -> float:
    """The rate at 1-based `step`: linear warm-up, then constant, or linear or cosine decay to 0 after the last step."""
    if step <= optim.warmup_steps:
        return optim.lr * step / optim.warmup_steps
    done = (step - optim.warmup_steps - 1) / max(1, num_steps - optim.warmup_steps)
    match optim.schedule:
        case "constant":
            return optim.lr
        case "linear":
            return optim.lr * (1 - done)
        case "cosine":
            return optim.lr * (1 + math.cos(math.pi * done)) / 2


class Optimizer:
    """AdamW over a module's parameters."""

    def __init__(self, module: nn.Module, optim: Optim, *, num_steps: int):
        self.optim = optim
        self.num_steps = num_steps
        self.parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
        first, second = optim.betas
        self.adamw = torch.optim.AdamW(
            self.parameters, lr=optim.lr, betas=(first, second), eps=optim.eps, weight_decay=optim.weight_decay
        )

    def step(self, step: int) -> dict[str, float]:
        """Makes one update from the accumulated gradients and clears them; returns the metrics.

        Makes no update where the gradient is not finite: the caller sees that in `grad_norm` and stops.
        """
        norm = float(full_tensor(nn.utils.clip_grad_norm_(self.parameters, self.optim.grad_clip)))
        rate = learning_rate(step, num_steps=self.num_steps, optim=self.optim)
        if math.isfinite(norm):
            for group in self.adamw.param_groups:
                group["lr"] = rate
            self.adamw.step()
        self.adamw.zero_grad(set_to_none=True)
        return {"grad_norm": norm, "lr": rate}
