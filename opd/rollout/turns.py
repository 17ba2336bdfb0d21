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
        chats = [
            _Chat(prompts[group], [*messages])
            for group, messages in enumerate(self.environment.start(prompts))
            for _ in range(sampling.num_samples)
        ]
        self._append(chats, rollout, sampling.max_tokens)
        for turn in range(1, self.environment.max_turns):
            active = [chat for chat in chats if not chat.truncated and self._add_reply(chat, turn, sampling.max_tokens)]
            if not self.ranks.any(bool(active)):  # ranks sample together
                break
            room = max((sampling.max_tokens - len(chat.tokens) for chat in active), default=1)
            continuations = [
                replace(chat.prompt, token_ids=(*chat.prompt.token_ids, *chat.tokens), id=f"{chat.prompt.id}/{place}")
                for place, chat in enumerate(chats)
                if chat in active
            ]
            more = self.sampler.sample(
                continuations, replace(sampling, num_samples=1, max_tokens=room), key=(*key, turn)
            )
            self._append(active, more, sampling.max_tokens)
        tokens, mask = pad([chat.tokens for chat in chats], 0, "right")
        logp, learned = torch.zeros(mask.shape, dtype=rollout.rollout_logp.dtype), torch.zeros_like(mask)
        for row, chat in enumerate(chats):
            logp[row, : len(chat.tokens)] = torch.tensor(chat.logp, dtype=logp.dtype)
            learned[row, : len(chat.tokens)] = torch.tensor(chat.learned, dtype=torch.bool)
        truncated = torch.tensor([chat.truncated for chat in chats], dtype=torch.bool)
        return replace(rollout, tokens=tokens, mask=mask, learned=learned, rollout_logp=logp, truncated=truncated)

    def _append(self, chats: "Sequence[_Chat]", rollout: Rollout, max_tokens: int) -> None:
        """Adds each row's tokens to its conversation, as far as there is room."""
        for row, chat in enumerate(chats):
            valid, room = rollout.mask[row], max_tokens - len(chat.tokens)
            tokens, logp = rollout.tokens[row][valid].tolist(), rollout.rollout_logp[row][valid].tolist()
            chat.add(tokens[:room], logp[:room], learned=True)
            chat.truncated = bool(rollout.truncated[row]) or len(tokens) > room
            chat.messages.append({"role": "assistant", "content": self.read(tokens[:room])})

    def _add_reply(self, chat: "_Chat", turn: int, max_tokens: int) -> bool:
        """Lets the environment answer; False where the response is over, or has no room for reply and next turn."""
        reply = self.environment.reply(chat.messages, turn)
        if reply is None:
            return False
        tokens = self.write(chat.messages, reply)
        if len(chat.tokens) + len(tokens) >= max_tokens:
            chat.truncated = True
            return False
        chat.messages += reply
        chat.add(tokens, [0.0] * len(tokens), learned=False)
        return True


@dataclass(eq=False)
class _Chat:
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
