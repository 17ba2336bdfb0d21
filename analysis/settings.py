"""Table 1 of the adventures post: the published settings, and their keys in a config."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Setting:
    """One row: its name, the key of the config, and the published value."""

    group: str
    setting: str
    key: str
    published: str


SETTINGS = (
    Setting("Core", "Teacher", "teacher.models", "Qwen/Qwen3-4B"),
    Setting("Core", "Student", "student.model", "Qwen/Qwen3-4B-Base"),
    Setting("Core", "Prompts", "prompts.source.kind", "deepmath"),
    Setting("Core", "Max response length", "max_response_length", "8192"),
    Setting("Core", "Advantage", "divergence._target_", "k1"),
    Setting("Core", "Temperature", "rollout.temperature", "1.0"),
    Setting("Core", "Gamma", "gamma", "0.0"),
    Setting("Core", "KL coefficient", "signal.near_start", "0.0"),
    Setting("Core", "Samples a prompt", "samples_per_prompt", "4"),
    Setting("Core", "Epochs", "epochs", "1"),
    Setting("Evaluation", "Benchmarks", "evaluate.benchmarks", "brumo25, hmmt25, beyondaime, aime24, aime25"),
    Setting("Evaluation", "Temperature", "evaluate.temperature", "0.7"),
    Setting("Evaluation", "Top-p", "evaluate.top_p", "0.9"),
    Setting("Evaluation", "k", "evaluate.k", "8"),
    Setting("Optimization", "Learning rate", "optim.lr", "1e-5"),
    Setting("Optimization", "Schedule", "optim.schedule", "constant"),
    Setting("Optimization", "Betas", "optim.betas", "0.9, 0.95"),
    Setting("Optimization", "Weight decay", "optim.weight_decay", "0.0"),
    Setting("Optimization", "Entropy coefficient", "signal.entropy", "0.0"),
    Setting("Optimization", "Gradient clip", "optim.grad_clip", "1.0"),
    Setting("Optimization", "Batch size", "batch_size", "512"),
    Setting("Optimization", "Mini-batch size", "mini_batch_size", "512"),
    Setting("Rollout correction", "Method", "rollout_correction._target_", "masked IS"),
    Setting("Rollout correction", "Level", "rollout_correction.level", "token"),
    Setting("Rollout correction", "Upper threshold", "rollout_correction.high", "2.0"),
    Setting("Rollout correction", "Lower threshold", "rollout_correction.low", "0.5"),
)
