"""Whether the Hugging Face Hub can be reached: asked once, with one short question, so that being offline is quick."""

from functools import cache

# The client asks a hub that does not answer five times, for half a minute, for each file.
SECONDS = 5.0


@cache
def reachable() -> bool:
    """Whether the hub answers at all, as the client asks it (its endpoint, proxies and certificates)."""
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session

    try:
        get_session().head(constants.ENDPOINT, timeout=SECONDS)
    except Exception:  # HF_HUB_OFFLINE, no name server, no route, a proxy that refuses: each means the same here
        return False
    return True
