"""Responses of several turns: an environment answers the model until it has nothing to say or the response is full."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch

from opd.data.batch import Prompt, Rollout, Sampling, pad
from opd.data.environment import Environment, Message
from opd.ranks.dist import Ranks
from opd.rollout.protocol import Sampler


@dataclass(frozen=True)
class Turns(Sampler):
    """`sampler`, with `environment` answering within its responses.

    `read` makes text of sampled tokens, `write` makes tokens of a reply, given the conversation before it. A response
    has at most `max_tokens` tokens, the environment's among them; those are not learned.
    """

    sampler: Sampler
    environment: Environment
    ranks: Ranks
    read: Callable[[Sequence[int]], str]
    write: Callable[[Sequence[Message], Sequence[Message]], list[int]]

    def sample(self, prompts: Sequence[Prompt], sampling: Sampling, *, key: tuple[int, ...]) -> Rollout:
        """See `Sampler.sample`; the turns after the first are drawn with `key` and their number."""
        rollout = self.sampler.sample(prompts, sampling, key=key)
        if self.environment.max_turns == 1:
            return rollout
        talks = [
            _Talk(prompts[group], [*messages])
            for group, messages in enumerate(self.environment.start(prompts))
            for _ in range(sampling.num_samples)
        ]
        self._append(talks, rollout, sampling.max_tokens)
        for turn in range(1, self.environment.max_turns):
            going = [talk for talk in talks if not talk.truncated and self._answered(talk, turn, sampling.max_tokens)]
            if not self.ranks.any(bool(going)):  # ranks sample together
                break
            room = max((sampling.max_tokens - len(talk.tokens) for talk in going), default=1)
            asked = [
                replace(talk.prompt, token_ids=(*talk.prompt.token_ids, *talk.tokens), id=f"{talk.prompt.id}/{place}")
                for place, talk in enumerate(talks)
                if talk in going
            ]
            more = self.sampler.sample(asked, replace(sampling, num_samples=1, max_tokens=room), key=(*key, turn))
            self._append(going, more, sampling.max_tokens)
        tokens, mask = pad([talk.tokens for talk in talks], 0, "right")
        logp, learned = torch.zeros(mask.shape, dtype=rollout.rollout_logp.dtype), torch.zeros_like(mask)
        for row, talk in enumerate(talks):
            logp[row, : len(talk.tokens)] = torch.tensor(talk.logp, dtype=logp.dtype)
            learned[row, : len(talk.tokens)] = torch.tensor(talk.learned, dtype=torch.bool)
        truncated = torch.tensor([talk.truncated for talk in talks], dtype=torch.bool)
        return replace(rollout, tokens=tokens, mask=mask, learned=learned, rollout_logp=logp, truncated=truncated)

    def _append(self, talks: "Sequence[_Talk]", rollout: Rollout, max_tokens: int) -> None:
        """Adds each row's tokens to its conversation, as far as there is room."""
        for row, talk in enumerate(talks):
            there, room = rollout.mask[row], max_tokens - len(talk.tokens)
            tokens, logp = rollout.tokens[row][there].tolist(), rollout.rollout_logp[row][there].tolist()
            talk.add(tokens[:room], logp[:room], learned=True)
            talk.truncated = bool(rollout.truncated[row]) or len(tokens) > room
            talk.messages.append({"role": "assistant", "content": self.read(tokens[:room])})

    def _answered(self, talk: "_Talk", turn: int, max_tokens: int) -> bool:
        """Lets the environment answer; False where the response is over, or has no room for reply and next turn."""
        reply = self.environment.reply(talk.messages, turn)
        if reply is None:
            return False
        tokens = self.write(talk.messages, reply)
        if len(talk.tokens) + len(tokens) >= max_tokens:
            talk.truncated = True
            return False
        talk.messages += reply
        talk.add(tokens, [0.0] * len(tokens), learned=False)
        return True


@dataclass(eq=False)
class _Talk:
    """A response as it grows."""

    prompt: Prompt
    messages: list[Message]
    tokens: list[int] = field(default_factory=list)
    logp: list[float] = field(default_factory=list)
    learned: list[bool] = field(default_factory=list)
    truncated: bool = False

    def add(self, tokens: list[int], logp: list[float], *, learned: bool) -> None:
        self.tokens += tokens
        self.logp += logp
        self.learned += [learned] * len(tokens)
