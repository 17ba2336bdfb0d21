"""The tiny world's tokenizer, in Hugging Face format: one token per character, and one for the answer mark."""

from typing import TYPE_CHECKING

from opd.data.arithmetic import ANSWER_MARK

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

PAD, EOS, UNKNOWN = "<|pad|>", "<|end|>", "<|unknown|>"

# Tokens that no solution has, for methods that put the name of the teacher before the prompt.
CONTROL = tuple(f"<|teacher-{index}|>" for index in range(8))

_VOCABULARY = (PAD, EOS, UNKNOWN, *CONTROL, *"0123456789", *"+-*=,;() ", ANSWER_MARK)


def build_tokenizer() -> "PreTrainedTokenizerFast":
    """A tokenizer that encodes and decodes texts of the arithmetic world exactly; other characters become UNKNOWN."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordLevel({token: index for index, token in enumerate(_VOCABULARY)}, UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(f"{ANSWER_MARK}|[\\s\\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=EOS,
        unk_token=UNKNOWN,
        additional_special_tokens=list(CONTROL),
        clean_up_tokenization_spaces=False,
    )
