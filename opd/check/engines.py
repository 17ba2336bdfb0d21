"""The engines that teachers can run on, and what each can give. Nothing here imports torch."""

from dataclasses import dataclass

from opd.config.schema import RunConfig, Teacher


@dataclass(frozen=True)
class Engine:
    """An engine of `teacher.engine`, and what it can give in addition to the log-probs of the sampled tokens.

    `build` is the path of the function that makes its `Teachers`; `settings`: it has settings of its own, under
    `teacher.<name>`; `loads`: where models are loaded, with "here" for this process's own, sharded models, "engine" for
    an engine in this process that reads the same files, and "elsewhere" for one that has loaded its model already.
    """

    build: str
    settings: bool
    loads: str
    distributions: bool  # full next-token distributions, from hidden states
    likeliest: bool  # the log-probs of a teacher's top K tokens
    entropies: bool
    temperatures: bool  # at temperatures other than 1
    rounds: bool  # makes 8-bit weights itself


ENGINES = {
    "local": Engine(
        "opd.teacher.load.local",
        settings=False,
        loads="here",
        distributions=True,
        likeliest=True,
        entropies=True,
        temperatures=True,
        rounds=True,
    ),
    "server": Engine(
        "opd.teacher.load.on_servers",
        settings=True,
        loads="elsewhere",
        distributions=False,
        likeliest=True,
        entropies=False,
        temperatures=False,
        rounds=False,
    ),
    "vllm": Engine(
        "opd.teacher.load.on_vllm",
        settings=True,
        loads="engine",
        distributions=False,
        likeliest=True,
        entropies=False,
        temperatures=False,
        rounds=False,
    ),
}


def engine(config: RunConfig | Teacher) -> Engine:
    """The engine that a config's teachers run on."""
    teacher = config if isinstance(config, Teacher) else config.teacher
    return ENGINES[teacher.engine]
