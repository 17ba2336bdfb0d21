"""What a config may not hold: by its form, by the name of its key, or because the environment has it as a secret."""

import string
from pathlib import Path
from typing import Any

import pytest

from opd.check import config as check
from opd.check.credentials import refuse_credentials
from opd.errors import UserError
from tests.integration.conftest import composed

LETTERS = string.ascii_letters + string.digits  # made up, of the right length: none has ever been issued

LOOKS = {
    "a Hugging Face token": f"hf_{LETTERS[:34]}",
    "an API key": f"sk-proj-{LETTERS[-40:]}",
    "a Weights & Biases key": f"wandb_v1_{LETTERS[:40]}",
    "an AWS access key": f"AKIA{LETTERS[26:36].upper()}012345",
    "a Google API key": f"AIza{LETTERS[:35]}",
    "a GitHub token": f"ghp_{LETTERS[:36]}",
    "a GitLab token": f"glpat-{LETTERS[:20]}",
    "a Slack token": f"xoxb-{LETTERS[:12]}",
    "a JSON web token": f"eyJ{LETTERS[:20]}.eyJ{LETTERS[:20]}.{LETTERS[:10]}",
    "a bearer token": f"Authorization: Bearer {LETTERS[:20]}",
    "a private key": "-----BEGIN OPENSSH PRIVATE KEY-----\nb3Bl",
    "an address with a user or password": "http://me:pass@host:8000/v1",
    "an address with a key": f"https://host/v1?region=eu&api_key={LETTERS[:9]}",
}


@pytest.mark.parametrize("kind", LOOKS)
def test_refuses_credentials_without_printing_them(kind: str):
    with pytest.raises(UserError) as refusal:
        refuse_credentials({"a": 1, "prompts": {"texts": ["fine", f"see {LOOKS[kind]}"]}})
    assert str(refusal.value).startswith(f"prompts.texts.1: looks like {kind}, and configs are recorded")
    assert LOOKS[kind][10:] not in str(refusal.value)


@pytest.mark.parametrize("key", ["api_key", "hf_token", "client_secret", "PASSWORD", "aws_credentials"])
def test_refuses_secret_keys(key: str):
    with pytest.raises(UserError, match=rf"^divergence\.{key}: is named like a secret"):
        refuse_credentials({"divergence": {key: "k1"}})
    refuse_credentials({"divergence": {key: None}, "memory": {"max_num_tokens": 3}, "control_token": "<|teacher-0|>"})


@pytest.mark.parametrize("name", ["WANDB_API_KEY", "HF_TOKEN", "AWS_ACCESS_KEY_ID", "DB_PASSWORD", "GITHUB_PAT"])
def test_refuses_values_of_secret_variables(name: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(name, "correct horse")
    with pytest.raises(UserError, match=f"^prompts.prefix: holds the value of the environment variable {name}"):
        composed(["prompts.prefix=${oc.env:" + name + "}"])
    with pytest.raises(UserError, match=f"^name: holds the value of the environment variable {name}"):
        refuse_credentials({"name": "a correct horse in the middle"})


def test_minimum_length_of_secret(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("DB_PASSWORD", "kestrels")
    with pytest.raises(UserError, match=r"^name: holds the value of the environment variable DB_PASSWORD"):
        refuse_credentials({"name": "of-kestrels"})
    monkeypatch.setenv("DB_PASSWORD", "kestrel")
    refuse_credentials({"name": "of-kestrels"})


def test_accepts_ordinary_values(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("KEYBOARD", "ordinary value")
    monkeypatch.setenv("SHORT_KEY", "tiny")
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path))  # where the secret is, not the secret
    config: dict[str, Any] = {
        "texts": [
            "ordinary value",
            "tiny",
            str(tmp_path),
            "task-force-2024-01-01-of-the-year",
            "hf_transfer",
            "a: b@c",
        ],
        "revision": "0123456789abcdef0123456789abcdef01234567",
        "urls": ["http://host:8000/v1", "https://host/v1?page=3"],
    }
    refuse_credentials(config)
    for choices in ([], ["scale=qwen3_4b"], ["+experiment=control_token"]):
        refuse_credentials(check.as_dict(composed(choices)))
