"""What a person watching a run reads: a line a step, and one for each evaluation."""

from typing import Any


def say(run: Any, number: int, metrics: dict[str, float]) -> None:
    """Prints step `number`'s line."""
    parts = [f"step {number:>{len(str(run.num_steps))}}/{run.num_steps}"]
    if number:
        seconds = sum(run.seconds.values())
        parts += [
            f"reverse_kl {metrics['divergence/reverse_kl']:8.4f}",
            f"grad_norm {metrics['grad_norm']:7.3f}",
            f"entropy {metrics['entropy/student']:.3f}",
            f"kept {metrics['filter/kept']:.3f}",
            f"length {metrics['response/length']:5.1f}",
            f"{seconds:5.2f} s",
        ]
    k = run.config.evaluate.k
    parts += [
        f"{score} {100 * metrics[f'evaluate/{score}']:.1f} %"
        for score in (f"mean@{k}", f"best@{k}")
        if f"evaluate/{score}" in metrics
    ]
    print("  ".join(parts), flush=True)
