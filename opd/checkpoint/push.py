"""`hub.push=OWNER/NAME`: a finished run's model, pushed to the Hugging Face Hub. Nothing here imports torch.

Pushed are the files of `checkpoints/final` but for its checksums, as they are: none names a place on this machine. The
token is the hub client's own, from HF_TOKEN or `hf auth login`.
"""

from opd.checkpoint.atomic import CHECKSUMS
from opd.config.schema import RunConfig
from opd.errors import UserError, first_line
from opd.printable import say, warn
from opd.records.run_dir import RunDir


def refuse_push(config: RunConfig) -> None:
    """Refuses a run whose model could not be pushed at its end.

    Raises:
        UserError: where there is no token, or the hub's client is told to stay offline.
    """
    if config.hub.push is None:
        return
    from huggingface_hub import constants, get_token

    if constants.HF_HUB_OFFLINE:
        raise UserError(f"hub.push={config.hub.push}: HF_HUB_OFFLINE is set; unset it, or set hub.push=null")
    if get_token() is None:
        raise UserError(
            f"hub.push={config.hub.push}: there is no token; log in with `hf auth login`, set HF_TOKEN, or set "
            "hub.push=null"
        )


def push(config: RunConfig, folder: RunDir) -> None:
    """Pushes a finished run's model, if its config says where to. A failure is a warning: the run stays finished."""
    if (name := config.hub.push) is None:
        return
    from huggingface_hub import HfApi
    from huggingface_hub.utils.tqdm import disable_progress_bars

    disable_progress_bars()
    api = HfApi()
    try:
        url = api.create_repo(name, private=config.hub.private, exist_ok=True)
        api.upload_folder(
            repo_id=name,
            folder_path=folder.checkpoints / "final",
            ignore_patterns=[CHECKSUMS],
            commit_message=folder.path.name,
        )
    except Exception as error:  # the client raises many types of errors here; all mean the same to the user
        reason = first_line(error).rstrip(". ")
        warn(f"hub.push={name}: the model was not pushed ({reason}); the same command pushes it again")
    else:
        say(f"{folder.path}: pushed to {url}")
