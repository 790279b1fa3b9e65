"""Whether the model hub answers, asked once and briefly: the library itself tries for half a minute."""

from http.client import HTTPException
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from mpvss.errors import ModelError

SECONDS = 4.0
"""How long the hub may take to answer anything."""


def require_hub(model: str, file: str = "config.json") -> None:
    """Refuse a model of the hub that is not on this machine while the hub does not answer.

    Args:
        model: Hub id, owner/name.
        file: What is going to be asked for.

    Raises:
        ModelError: The hub does not answer within ``SECONDS``.
    """
    from huggingface_hub import constants, try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        cached = isinstance(try_to_load_from_cache(model, file), str)
    except HFValidationError:
        return  # no hub id: the library says so
    if cached or constants.HF_HUB_OFFLINE:
        return
    request = Request(f"{constants.ENDPOINT}/{model}/resolve/main/{file}", method="HEAD")
    try:
        with urlopen(request, timeout=SECONDS):
            pass
    except HTTPError:
        pass  # it answers
    except (OSError, HTTPException, ValueError) as error:
        reason = getattr(error, "reason", None) or error
        raise ModelError(
            f"{model}: not on this machine, and the model hub does not answer ({reason}); check the network, or give a "
            "directory"
        ) from error
