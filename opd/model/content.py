"""What a model is, apart from its name: the hash of its files, or the revision that the hub gives them."""

import hashlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from transformers import PreTrainedTokenizerBase
from transformers.utils.hub import cached_file, extract_commit_hash

from opd.model.adapted import base_of
from opd.model.load import hub_settings

# Of a directory, what decides which numbers its model computes and where its texts end; its tokenizer is hashed apart.
_FILES = ("*.safetensors", "config.json", "generation_config.json", "adapter_config.json")


def model_content(model: str, *, revision: str | None, key: str) -> str:
    """`sha256:…` over the files of a directory, `revision:…` of a hub's model; of adapters, theirs and their base's.

    Bytes are read once more after loading, by one thread a file: some seconds for tens of gigabytes.
    """
    how = hub_settings(model, revision)
    base = base_of(model, key=key, **how)
    own = (
        _directory(Path(model))
        if Path(model).is_dir()
        else _on_hub(model, "adapter_config.json" if base else None, how)
    )
    return own if base is None else f"{own} on {model_content(base, revision=None, key=key)}"


def tokenizer_content(tokenizer: PreTrainedTokenizerBase) -> str:
    """`sha256:…` over the tokens with their ids, the roles of special tokens, and the chat template."""
    parts = (
        sorted(tokenizer.get_vocab().items()),
        sorted(tokenizer.special_tokens_map.items()),
        tokenizer.chat_template,
    )
    return f"sha256:{hashlib.sha256(repr(parts).encode()).hexdigest()}"


def _directory(folder: Path) -> str:
    files = sorted(file for pattern in _FILES for file in folder.glob(pattern) if file.is_file())
    with ThreadPoolExecutor(8) as pool:
        digests = list(pool.map(_digest, files))
    listed = "".join(f"{digest}  {file.name}\n" for digest, file in zip(digests, files, strict=True))
    return f"sha256:{hashlib.sha256(listed.encode()).hexdigest()}"


def _digest(file: Path) -> str:
    with open(file, "rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _on_hub(model: str, file: str | None, how: dict[str, object]) -> str:
    found = cached_file(model, file or "config.json", **how)  # pyright: ignore[reportArgumentType]
    return f"revision:{extract_commit_hash(found, None)}"
