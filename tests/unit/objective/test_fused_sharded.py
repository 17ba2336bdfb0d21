"""Fused divergences under FSDP2: two ranks, each with half of the tokens, give the gradients of one."""

import pytest
import torch
import torch.distributed as dist
from torch import nn

from opd.objective import divergence, fused
from tests.forks import run_ranks

WIDTH, VOCABULARY, TOKENS = 6, 20, 8


class Student(nn.Module):
    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.body, self.head = nn.Linear(WIDTH, WIDTH, bias=False), nn.Linear(WIDTH, VOCABULARY, bias=False)
        for layer in (self.body, self.head):
            with torch.no_grad():
                layer.weight.copy_(torch.randn(layer.weight.shape, generator=generator))

    def forward(self, inputs, hidden_teacher, head_teacher, weight):
        # Inside the root's forward the head is whole, on every rank.
        loss, _ = fused.exact(
            self.body(inputs),
            self.head.weight,
            hidden_teacher,
            head_teacher,
            divergence.jensen_shannon(),
            weight=weight,
        )
        return loss


def problem():
    generator = torch.Generator().manual_seed(1)
    inputs, hidden_teacher = torch.randn(2, TOKENS, WIDTH, generator=generator)
    head_teacher = torch.randn(VOCABULARY, WIDTH, generator=generator)
    return inputs, hidden_teacher, head_teacher, torch.full((TOKENS,), 1 / TOKENS)


def _rank(rank, file, results):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=2)
    student = Student()
    fully_shard(student, mesh=init_device_mesh("cpu", (2,)))
    inputs, hidden_teacher, head_teacher, weight = problem()
    mine = slice(rank * TOKENS // 2, (rank + 1) * TOKENS // 2)
    # FSDP averages over ranks, and the loss is a sum over the whole batch: times the number of ranks.
    (2 * student(inputs[mine], hidden_teacher[mine], head_teacher, weight[mine])).backward()
    grads = [parameter.grad.full_tensor() for parameter in student.parameters()]
    if rank == 0:
        torch.save(grads, results)
    dist.destroy_process_group()


@pytest.mark.skipif(not dist.is_available() or not dist.is_gloo_available(), reason="needs torch.distributed with gloo")
def test_two_ranks_give_the_gradients_of_one(tmp_path):
    run_ranks(_rank, (tmp_path / "rendezvous", tmp_path / "grads.pt"), 2)
    student = Student()
    student(*problem()).backward()
    expected = [parameter.grad for parameter in student.parameters()]
    torch.testing.assert_close(torch.load(tmp_path / "grads.pt", weights_only=True), expected)
