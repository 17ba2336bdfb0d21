"""Whether the Hugging Face Hub can be reached, tested once by one short request so that being offline costs little."""

from functools import cache

# The client itself retries five times, for half a minute, for each file.
SECONDS = 5.0


@cache
def reachable() -> bool:
    """Whether the hub responds at the client's endpoint, with its proxies and certificates."""
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session

    try:
        get_session().head(constants.ENDPOINT, timeout=SECONDS)
    except Exception:  # HF_HUB_OFFLINE, no name server, no route or a refusing proxy: all mean offline
        return False
    return True
