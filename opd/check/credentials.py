"""What looks like a credential: a config is recorded, sent to trackers and published, so it may hold none."""

import os
import re
from collections.abc import Iterator, Mapping
from typing import Any

from opd.errors import UserError

# What issuers' keys look like, by prefixes that they chose for that purpose.
_KINDS = {
    "a Hugging Face token": r"\bhf_[A-Za-z0-9]{30,}",
    "an API key": r"\bsk-(?=[\w-]*\d)[\w-]{20,}",
    "a Weights & Biases key": r"\bwandb_v\d+_\w{20,}",
    "an AWS access key": r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b",
    "a Google API key": r"\bAIza[\w-]{35}",
    "a GitHub token": r"\b(?:gh[pousr]_|github_pat_)\w{30,}",
    "a GitLab token": r"\bglpat-[\w-]{20,}",
    "a Slack token": r"\bxox[a-z]-[\w-]{10,}",
    "a JSON web token": r"\beyJ[\w-]{10,}\.eyJ[\w-]{10,}\.[\w-]+",
    "a bearer token": r"(?i:\bbearer\s+)[\w.~+/-]{16,}",
    "a private key": r"-----BEGIN [A-Z ]*PRIVATE KEY",
    "an address with a user or password": r"://[^/@\s'\"]+@",
    "an address with a key": r"://\S*[?&](?i:api_?key|key|\w*token|auth|password|secret|sig|signature)=[^&\s]",
}
_ANY = re.compile("|".join(f"({pattern})" for pattern in _KINDS.values()))

# A config key whose last words these are holds a secret, whatever stands before: `client_secret`, `hf_token`.
_SECRET_KEY = re.compile(
    r"(^|_)(api_?key|access_?key|secret|password|passwd|credentials?|(api|auth|access|hf)_token)s?$", re.I
)
# The environment variables whose values are secrets, by their names.
_SECRET_VARIABLE = re.compile(
    r"(KEY|TOKEN|SECRET|PASSWORD|PASSWD|PASSPHRASE|CREDENTIAL|JWT)S?(_ID)?$|(^|_)(PAT|AUTH|PASS)$"
)
_SHORTEST = 8  # characters: a shorter value would match ordinary words


def refuse_credentials(config: Mapping[str, Any]) -> None:
    """Refuses a config in which a value looks like a credential: by its form, by the name of its key, or by being the
    value of an environment variable with the name of one.

    Raises:
        UserError: naming the key, never the value.
    """
    # One search of all the text: a sweep has thousands of configs.
    texts = {key: text for key, text in _texts(config, "") if text}
    secrets = _environment_secrets()
    combined = "\n".join(texts.values())
    if (
        not _ANY.search(combined)
        and not any(value in combined for value in secrets)
        and not any(map(_is_secret, texts))
    ):
        return
    for key, text in texts.items():
        if variables := [name for value, name in secrets.items() if value in text]:
            raise _refusal(key, f"holds the value of the environment variable {variables[0]}")
        if match := _ANY.search(text):
            raise _refusal(key, f"looks like {list(_KINDS)[(match.lastindex or 1) - 1]}")
        if _is_secret(key):
            raise _refusal(key, "is named like a secret")


def without_credentials(text: str) -> str:
    """The text with users and passwords left out of the addresses in it."""
    return re.sub(r"://[^/@\s'\"]+@", "://", text)


def _refusal(key: str, what: str) -> UserError:
    return UserError(
        f"{key}: {what}, and configs are recorded; leave it out, and give it by a login or an environment variable "
        "(for teachers' servers, teacher.server.api_key_env names one)"
    )


def _is_secret(key: str) -> bool:
    return bool(_SECRET_KEY.search(key.rpartition(".")[2]))


def _environment_secrets() -> dict[str, str]:
    """Value → name of the environment variables that hold secrets. One that is the path of a file is none itself."""
    return {
        value: name
        for name, value in os.environ.items()
        if len(value) >= _SHORTEST and _SECRET_VARIABLE.search(name.upper()) and not os.path.exists(value)
    }


def _texts(value: Any, key: str) -> Iterator[tuple[str, str]]:
    """Every text of a config with its dotted key."""
    if isinstance(value, Mapping):
        for name, inner in value.items():
            path = f"{key}.{name}" if key else str(name)
            if isinstance(inner, str | Mapping | list | tuple):
                yield from _texts(inner, path)
    elif isinstance(value, list | tuple):
        for place, inner in enumerate(value):
            yield from _texts(inner, f"{key}.{place}")
    elif isinstance(value, str):
        yield key, value
