"""Requests to the Hub: patience with a busy one, and its errors in our words."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from cdrl_infer.errors import (
    CDRLError,
    CheckpointError,
    InputError,
    NetworkError,
    did_you_mean,
    listing,
)
from cdrl_infer.storage.folder import CARD
from cdrl_infer.version import __version__

if TYPE_CHECKING:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError
    from huggingface_hub.hf_api import ModelInfo

T = TypeVar("T")
Token = str | bool | None

LOGIN = "log in with `hf auth login`, set HF_TOKEN or pass token=…"
BUSY = (408, 429, 500, 502, 503, 504)  # HTTP statuses after which trying again may help
WAITS = (1.0, 2.0)  # seconds between the tries, if the Hub does not ask for more
LONGEST_WAIT = 60.0  # seconds; if the Hub asks for more, we give up


class Target(NamedTuple):
    """The repository that a request is about, and who asks."""

    repo_id: str
    revision: str = "main"
    token: Token = None
    writing: bool = False

    def api(self) -> HfApi:
        """The Hub's client, with our token and name."""
        from huggingface_hub import HfApi

        return HfApi(token=self.token, library_name="cdrl", library_version=__version__)

    def info(self, *, sizes: bool = False) -> ModelInfo:
        """What the Hub knows about the revision; with ``sizes`` also the sizes of its files."""
        return self.api().model_info(
            self.repo_id, revision=self.revision, files_metadata=sizes, timeout=timeout()
        )


def is_repo_id(name: object) -> bool:
    """Whether a text names a repository: ``user/model``."""
    return isinstance(name, str) and bool(re.fullmatch(r"[A-Za-z0-9][\w.-]*/[\w.-]*\w", name))


def timeout() -> float:
    """Seconds until the Hub counts as unreachable; ``HF_HUB_ETAG_TIMEOUT`` sets them."""
    from huggingface_hub.constants import HF_HUB_ETAG_TIMEOUT

    return HF_HUB_ETAG_TIMEOUT


def patiently(ask: Callable[[], T]) -> T:
    """Ask up to three times while the Hub is busy, and wait as long as it says."""
    from huggingface_hub.errors import HfHubHTTPError

    for wait in WAITS:
        try:
            return ask()
        except HfHubHTTPError as error:
            asked = _retry_after(error)
            if error.response.status_code not in BUSY or asked > LONGEST_WAIT:
                raise
            time.sleep(max(wait, asked))
    return ask()


def _retry_after(error: HfHubHTTPError) -> float:
    """How many seconds a busy Hub asked us to wait; 0 if it did not say."""
    text = str(error.response.headers.get("Retry-After", ""))
    return float(text) if re.fullmatch(r"\d{1,6}", text) else 0.0


@contextmanager
def explained(target: Target) -> Iterator[None]:
    """Turn any error of the Hub's client into one of ours, in one line."""
    try:
        yield
    except CDRLError:
        raise
    except Exception as error:
        raise _explain(error, target) from error


def _explain(error: BaseException, target: Target) -> CDRLError:
    from huggingface_hub import errors

    cause = error.__cause__
    if isinstance(error, (errors.LocalEntryNotFoundError, RuntimeError)) and cause is not None:
        return _explain(cause, target)  # the wrapper says less than its cause
    reason = _one_line(str(error))
    if isinstance(error, errors.HFValidationError):
        return InputError(f"{target.repo_id!r} cannot be the name of a repository: {reason}")
    if isinstance(error, errors.HfHubHTTPError):
        return _explain_status(error, target)
    if isinstance(error, errors.OfflineModeIsEnabled):
        return NetworkError("HF_HUB_OFFLINE is set, so the Hub was not asked; unset it")
    if isinstance(error, errors.SafetensorsParsingError):
        return CheckpointError(f"the weights are not a safetensors file: {reason}")
    if isinstance(error, ValueError) and CARD in reason:
        return InputError(f"the Hub does not accept the card: {reason}")
    return _explain_connection(error, target, reason)


def _explain_status(error: HfHubHTTPError, target: Target) -> CDRLError:
    """The Hub answered, but not with what we asked for."""
    from huggingface_hub import errors, get_token

    repo, status = target.repo_id, error.response.status_code
    known = bool(get_token() if target.token is None else target.token)
    if isinstance(error, errors.GatedRepoError):
        return CheckpointError(
            f"{repo} is gated: ask for access on its page on the Hub, then {LOGIN}"
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return CheckpointError(f"{repo} has no revision {target.revision!r}{_revisions(target)}")
    if target.writing and not known and status in (401, 403, 404):
        return CheckpointError(
            f"uploading to {repo} needs a token with the right to write: {LOGIN}"
        )
    # Without a token, the Hub answers alike for missing and for private repositories.
    if isinstance(error, errors.RepositoryNotFoundError) or (status == 401 and not known):
        return CheckpointError(
            f"no repository {repo} on the Hub, and no such folder here; is the name right? "
            + ("The token may not be allowed to read it" if known else f"If it is private, {LOGIN}")
        )
    if status == 401:
        return CheckpointError(f"the Hub does not accept the token: make a new one and {LOGIN}")
    said = _one_line(error.server_message or str(error))
    if status == 403:
        return CheckpointError(
            f"the token may not {'write to' if target.writing else 'read'} {repo} ({said}); use one "
            f"that may: {LOGIN}"
        )
    if status in BUSY:
        wait = _retry_after(error)
        when = f"in {wait:.0f} seconds" if wait else "later"
        return NetworkError(f"the Hub is too busy or broken ({status}); try again {when}")
    return CheckpointError(f"the Hub refused ({status}): {said}")


def _explain_connection(error: BaseException, target: Target, reason: str) -> CDRLError:
    """No answer, half an answer, or an answer of something that is not a Hub."""
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]

    if isinstance(error, HTTPError) and type(error).__name__.startswith("Connect"):
        return NetworkError(f"the Hub cannot be reached ({reason}); is there a network?")
    # hf_xet, which transfers large files, raises RuntimeError when a transfer fails.
    broken = isinstance(error, (HTTPError, ConnectionError, TimeoutError, RuntimeError))
    if isinstance(error, OSError) and error.errno is not None and not broken:
        return CheckpointError(f"cannot read or write files for {target.repo_id}: {error.strerror}")
    if broken or isinstance(error, OSError):
        return NetworkError(
            f"the connection to the Hub broke off ({reason or type(error).__name__}); try again: "
            "complete files are kept, the interrupted one starts over"
        )
    return CheckpointError(
        f"the Hub's answer cannot be understood ({type(error).__name__}: {reason}); is HF_ENDPOINT "
        "the address of a Hub?"
    )


def _one_line(text: str) -> str:
    """The server's text, shortened and without control characters."""
    return "".join(c for c in " ".join(text.split()) if c.isprintable())[:300]


def _revisions(target: Target) -> str:
    """``"; it has main, v1"``, or nothing if the Hub does not say."""
    try:
        refs = target.api().list_repo_refs(target.repo_id)
    except Exception:  # this is only a hint for another error
        return ""
    names = [ref.name for ref in (*refs.branches, *refs.tags)]
    return f"; it has {listing(names)}{did_you_mean(target.revision, names)}"
