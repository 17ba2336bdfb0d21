"""The worlds' tokenizers, in Hugging Face format: one token per character, and one for the answer mark."""

import string
from collections.abc import Mapping
from typing import TYPE_CHECKING

from opd.config.worlds import World
from opd.data.problem import ANSWER_MARK

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

PAD, EOS, UNKNOWN = "<|pad|>", "<|end|>", "<|unknown|>"

# Tokens that no solution has, for methods that put the name of the teacher before the prompt.
CONTROL = tuple(f"<|teacher-{index}|>" for index in range(8))

# Spare tokens of the puzzles' tokenizer: the turns of a conversation, as a chat template may write them.
TURNS = ("<|system|>", "<|user|>", "<|assistant|>", "<|tool|>", "<|close|>")

_PRINTABLE = (*string.digits, *string.ascii_letters, *string.punctuation, " ", "\n")
_VOCABULARIES: Mapping[World, tuple[str, ...]] = {
    "arithmetic": (PAD, EOS, UNKNOWN, *CONTROL, *"0123456789", *"+-*=,;() ", ANSWER_MARK),
    "puzzles": (PAD, EOS, UNKNOWN, *CONTROL, *TURNS, *_PRINTABLE, ANSWER_MARK),
}


def build_tokenizer(world: World = "arithmetic") -> "PreTrainedTokenizerFast":
    """A tokenizer that encodes and decodes a world's texts exactly; other characters become UNKNOWN."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordLevel({token: index for index, token in enumerate(_VOCABULARIES[world])}, UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(f"{ANSWER_MARK}|[\\s\\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=EOS,
        unk_token=UNKNOWN,
        additional_special_tokens=[*CONTROL, *(TURNS if world == "puzzles" else ())],
        clean_up_tokenization_spaces=False,
    )
