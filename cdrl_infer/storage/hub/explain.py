"""The errors of the Hub's client in our words."""

from __future__ import annotations

import os
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from cdrl_infer.errors import (
    CDRLError,
    CheckpointError,
    InputError,
    NetworkError,
    did_you_mean,
    listing,
)
from cdrl_infer.storage.folder import CARD
from cdrl_infer.storage.hub.client import BUSY, Target, retry_after, within, without_passwords

if TYPE_CHECKING:
    from huggingface_hub.errors import HfHubHTTPError

LOGIN = "log in with `hf auth login`, set HF_TOKEN or pass token=…"
PROXIES = ("HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY")  # also in lower case


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

    if isinstance(error, CDRLError):
        return error
    cause = error.__cause__
    if isinstance(error, (errors.LocalEntryNotFoundError, RuntimeError)) and cause is not None:
        return _explain(cause, target)  # the wrapper says less than its cause
    reason = without_passwords(error, target.secret())
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
    from huggingface_hub import errors

    repo, status = target.repo_id, error.response.status_code
    known = bool(target.secret())
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
    said = without_passwords(error.server_message or error, target.secret())
    if status == 403:
        return CheckpointError(
            f"the token may not {'write to' if target.writing else 'read'} {repo} ({said}); use one "
            f"that may: {LOGIN}"
        )
    if status == 407:
        return NetworkError(_proxy_refuses(said))
    if status in BUSY:
        wait = retry_after(error)
        when = f"in {wait:.0f} seconds" if wait else "later"
        return NetworkError(f"the Hub is too busy or broken ({status}); try again {when}")
    return CheckpointError(f"the Hub refused ({status}): {said}")


def _explain_connection(error: BaseException, target: Target, reason: str) -> CDRLError:
    """No answer, half an answer, or an answer of something that is not a Hub."""
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]

    # The client's library of HTTP is httpx or httpx2, so its errors are known by their names.
    kind = type(error).__name__ if isinstance(error, HTTPError) else ""
    if _is_about_certificates(error):
        return NetworkError(
            f"the certificate of the Hub, or of a proxy before it, is not accepted ({reason}); set "
            "SSL_CERT_FILE to a file of the certificates that your network uses"
        )
    if kind == "ProxyError":
        return NetworkError(_proxy_refuses(reason))
    if kind.startswith("Connect"):
        proxies = [name for name in PROXIES if os.environ.get(name) or os.environ.get(name.lower())]
        through = f" through the proxy of {listing(proxies)}" if proxies else ""
        mend = "is the proxy right" if proxies else "is there a network"
        return NetworkError(f"the Hub cannot be reached{through} ({reason}); {mend}?")
    if kind.endswith("Timeout"):
        return NetworkError(f"the Hub did not answer in time ({reason or kind}); try again later")
    # hf_xet, which transfers large files, raises RuntimeError when a transfer fails.
    broken = isinstance(error, (HTTPError, ConnectionError, TimeoutError, RuntimeError))
    if isinstance(error, OSError) and error.errno is not None and not broken:
        return CheckpointError(f"cannot read or write files for {target.repo_id}: {error.strerror}")
    if kind != "UnsupportedProtocol" and (broken or isinstance(error, OSError)):
        return NetworkError(
            f"the connection to the Hub broke off ({reason or type(error).__name__}); try again: "
            "complete files are kept, the interrupted one starts over"
        )
    return NetworkError(
        f"the Hub's answer cannot be understood ({type(error).__name__}: {reason}); is HF_ENDPOINT "
        "the address of a Hub, or does the network show a page of its own?"
    )


def _is_about_certificates(error: BaseException | None) -> bool:
    """Whether an error, or one that caused it, is that a certificate was not accepted."""
    if error is None or isinstance(error, ssl.SSLCertVerificationError):
        return error is not None
    return _is_about_certificates(error.__cause__ or error.__context__)


def _proxy_refuses(reason: str) -> str:
    return (
        f"the proxy refuses to connect to the Hub ({reason}); check {', '.join(PROXIES)} and NO_PROXY, "
        "also the name and password in them"
    )


def _revisions(target: Target) -> str:
    """``"; it has main, v1"``, or nothing if the Hub does not say."""
    try:
        refs = within(lambda: target.api().list_repo_refs(target.repo_id))
    except Exception:  # this is only a hint for another error
        return ""
    names = [ref.name for ref in (*refs.branches, *refs.tags)]
    return f"; it has {listing(names)}{did_you_mean(target.revision, names)}"
