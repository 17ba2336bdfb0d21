"""The engines that teachers can run on, and what each can give. Nothing here imports torch."""

from dataclasses import dataclass

from opd.config.schema import RunConfig, Teacher


@dataclass(frozen=True)
class Engine:
    """An engine of `teacher.engine`, and what it can give in addition to log-probs of sampled and of likeliest tokens.

    `build` is the path of the function that makes its `Teachers`; `loads`: where models are loaded, with "here" for
    this process's own, sharded models, "engine" for an engine in this process that reads the same files, and
    "elsewhere" for one that has loaded its model already; `settings`: it has settings of its own, `teacher.<name>`.
    """

    build: str
    loads: str
    settings: bool = True
    distributions: bool = False  # full next-token distributions, from hidden states
    entropies: bool = False
    temperatures: bool = False  # at temperatures other than 1
    rounds: bool = False  # makes 8-bit weights itself


ENGINES = {
    "local": Engine(
        "opd.teacher.load.local",
        loads="here",
        settings=False,
        distributions=True,
        entropies=True,
        temperatures=True,
        rounds=True,
    ),
    "server": Engine("opd.teacher.load.on_servers", loads="elsewhere"),
    "vllm": Engine("opd.teacher.load.on_vllm", loads="engine"),
}


def engine(config: RunConfig | Teacher) -> Engine:
    """The engine that a config's teachers run on."""
    teacher = config if isinstance(config, Teacher) else config.teacher
    return ENGINES[teacher.engine]
