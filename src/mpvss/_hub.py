"""The model hub: whether it answers, asked once and briefly, and downloads with progress."""

import json
import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from mpvss.errors import ModelError
from mpvss.progress import progress

log = logging.getLogger(__name__)

SECONDS = 4.0
"""How long the hub may take to answer anything: the library itself tries for half a minute."""

_WEIGHTS = "model.safetensors"


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


def download_weights(model: str) -> None:
    """Fetch the weights of a model of the hub into the library's cache, showing progress as every command does.

    The library, which is asked next, finds them there. What it would fetch by other names is left to it, and so is
    everything where nobody asked for progress.

    Args:
        model: Hub id, owner/name.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    if progress_bar(model) is None:
        return

    def fetch(file: str) -> Any:
        return hf_hub_download(model, file, tqdm_class=progress_bar(f"{model}/{file}"))

    try:
        fetch(_WEIGHTS)
    except HfHubHTTPError:  # not one file: many, or of another format
        try:
            index = json.loads(Path(fetch(f"{_WEIGHTS}.index.json")).read_bytes())
            for file in sorted(set(index["weight_map"].values())):
                fetch(file)
        except (HfHubHTTPError, OSError, ValueError, LookupError, AttributeError, TypeError):
            return
    except (HFValidationError, LocalEntryNotFoundError, OSError, ValueError):
        return


@contextmanager
def quiet_library() -> Iterator[None]:
    """Load or save a model without transformers' own progress bars and its advice about backbones."""
    from transformers.utils import logging as library

    verbosity, bar = library.get_verbosity(), library.is_progress_bar_enabled()
    library.set_verbosity_error()
    library.disable_progress_bar()
    try:
        yield
    finally:
        library.set_verbosity(verbosity)
        if bar:
            library.enable_progress_bar()


def progress_bar(name: str) -> type[Any] | None:
    """A class for the library's bars that draws none itself: its bytes go to ``progress``, in megabytes.

    ``None``, which is the library's own, where nobody asked for progress.
    """
    if not log.isEnabledFor(logging.INFO):
        return None
    from tqdm.auto import tqdm  # type: ignore[import-untyped]

    class Bar(tqdm):
        def __init__(self, *_: Any, total: int | None = None, initial: int = 0, **__: Any) -> None:
            super().__init__(disable=True)
            self._bytes: float = initial
            self._shown = int(initial // 1e6)
            self._stack = ExitStack()
            megabytes = None if total is None else max(1, round(total / 1e6))
            self._advance = self._stack.enter_context(progress(name, megabytes, unit="MB", done=self._shown))

        def update(self, n: Any = 1) -> None:
            self._bytes += n or 0
            steps = round(self._bytes / 1e6) - self._shown
            if steps > 0:
                self._shown += steps
                self._advance(steps=steps)

        def close(self) -> None:
            self._stack.close()

    return Bar
