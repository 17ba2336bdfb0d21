import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from opd.config.schema import Optim
from opd.model.optim import Optimizer, learning_rate

OPTIM = Optim(lr=0.1, schedule="constant", warmup_steps=0, betas=[0.9, 0.95], eps=1e-8, weight_decay=0.0, grad_clip=1.0)


@pytest.mark.parametrize(
    ("schedule", "rates"),
    [
        ("constant", [0.05, 0.1, 0.1, 0.1, 0.1, 0.1]),
        ("linear", [0.05, 0.1, 0.1, 0.075, 0.05, 0.025]),
        ("cosine", [0.05, 0.1, 0.1, 0.05 * (1 + math.sqrt(0.5)), 0.05, 0.05 * (1 - math.sqrt(0.5))]),
    ],
)
def test_learning_rate_worked_by_hand(schedule: str, rates: list[float]):
    optim = replace(OPTIM, schedule=schedule, warmup_steps=2)
    assert [learning_rate(step, num_steps=6, optim=optim) for step in range(1, 7)] == pytest.approx(rates)


def test_the_first_adamw_step_is_the_rate_in_the_gradients_direction():
    module = nn.Linear(2, 1, bias=False)
    before = module.weight.detach().clone()
    optimizer = Optimizer(module, OPTIM, num_steps=3)
    module.weight.grad = torch.tensor([[3.0, -4.0]])
    metrics = optimizer.step(1)
    assert metrics == {"grad_norm": pytest.approx(5.0), "lr": 0.1}
    torch.testing.assert_close(module.weight, before - 0.1 * torch.tensor([[1.0, -1.0]]), atol=1e-6, rtol=0)
    assert module.weight.grad is None


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_gradient_that_is_no_number_changes_nothing(bad: float):
    module = nn.Linear(2, 1, bias=False)
    before = module.weight.detach().clone()
    optimizer = Optimizer(module, OPTIM, num_steps=3)
    module.weight.grad = torch.tensor([[bad, 1.0]])
    assert not math.isfinite(optimizer.step(1)["grad_norm"])
    assert torch.equal(module.weight, before) and not optimizer.adamw.state
