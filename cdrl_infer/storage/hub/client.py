"""Requests to the Hub: who asks, how long we wait, and how often we ask a busy one."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable
from concurrent.futures import thread as pools
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from cdrl_infer.errors import InputError, NetworkError, shown
from cdrl_infer.version import __version__

if TYPE_CHECKING:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError
    from huggingface_hub.hf_api import ModelInfo

T = TypeVar("T")
Token = str | bool | None

BUSY = (408, 429, *range(500, 600))  # HTTP statuses after which trying again may help
WAITS = (1.0, 2.0)  # seconds between the tries, if the Hub does not ask for more
LONGEST_WAIT = 60.0  # seconds; if the Hub asks for more, we give up
PATIENCE = 60.0  # seconds without an answer after which a request ends
SLOWEST = 10_000.0  # bytes per second; a slower transfer of files is given up


@dataclass(frozen=True)
class Target:
    """The repository that a request is about, and who asks.

    Spaces and line ends around a token are removed, and an empty token counts as none.
    """

    repo_id: str
    revision: str = "main"
    token: Token = field(default=None, repr=False)
    writing: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.token, str):
            object.__setattr__(self, "token", self.token.strip() or None)
        elif not (self.token is None or isinstance(self.token, bool)):
            raise InputError(f"token must be a text, got {type(self.token).__name__}")

    def secret(self) -> str | None:
        """The token that requests are made with."""
        from huggingface_hub import get_token

        return (
            self.token
            if isinstance(self.token, str)
            else None
            if self.token is False
            else get_token()
        )

    def api(self) -> HfApi:
        """The Hub's client, with our token and name."""
        from huggingface_hub import HfApi

        if not re.fullmatch(r"[!-~]*", self.secret() or ""):
            raise InputError(
                "the token, which is not shown here, has a character that no token has; copy it again"
            )
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


def patiently(ask: Callable[[], T], size: int = 0) -> T:
    """Ask up to three times while the Hub is busy, and wait as long as it says; see `within`."""
    from huggingface_hub.errors import HfHubHTTPError

    for wait in WAITS:
        try:
            return within(ask, size)
        except HfHubHTTPError as error:
            asked = retry_after(error)
            if error.response.status_code not in BUSY or asked > LONGEST_WAIT:
                raise
            time.sleep(max(wait, asked))
    return within(ask, size)


def retry_after(error: HfHubHTTPError) -> float:
    """How many seconds a busy Hub asked us to wait; 0 if it did not say."""
    text = str(error.response.headers.get("Retry-After", ""))
    return float(text) if re.fullmatch(r"\d{1,6}", text) else 0.0


def within(call: Callable[[], T], size: int = 0, *, seconds: float | None = None) -> T:
    """The result of a call of the Hub's client, which has no deadline of its own.

    Ctrl-C and the deadline end the wait at once, whatever the client waits for.

    Args:
        call: asks the Hub.
        size: bytes of the files that are transferred; they have more time.
        seconds: limit for the call as a whole; by default twice `PATIENCE`, and the time of ``size``
            bytes at the rate `SLOWEST`.

    Raises:
        NetworkError: a request was not answered for `PATIENCE` seconds, or the limit is over.
    """
    seconds = 2 * PATIENCE + size / SLOWEST if seconds is None else seconds
    end, made = time.monotonic() + seconds, _Call(call)
    made.start()
    try:
        while made.is_alive():
            if time.monotonic() > end:
                raise NetworkError(
                    f"the Hub was not done within {seconds:.0f} seconds; try again later"
                )
            made.join(0.2)  # in slices, so that Ctrl-C is heeded on Windows too
    except BaseException:
        made.abandoned = True  # it makes no further requests
        raise
    if made.error is not None:
        raise made.error
    return made.result


class _Call(threading.Thread, Generic[T]):
    """A call of the Hub's client in a thread; Python does not wait for it when it exits."""

    result: T
    error: BaseException | None = None

    def __init__(self, call: Callable[[], T]) -> None:
        super().__init__(name="cdrl-hub", daemon=True)
        self.call = call
        self.abandoned = False
        # When each request was first made, until it is answered.
        self.asked: dict[tuple[threading.Thread, str, str], float] = {}

    def run(self) -> None:
        """Make the call and keep its result or error."""
        from huggingface_hub import get_session

        try:
            hooks = _session(get_session).event_hooks
            hooks["request"].append(self._before)
            hooks["response"].append(self._after)
            try:
                self.result = self.call()
            finally:
                hooks["request"].remove(self._before)
                hooks["response"].remove(self._after)
        except BaseException as error:
            self.error = error

    def _before(self, request: Any) -> None:
        """Limit the time of a request, and refuse to repeat one that was not answered in time."""
        now, asking = time.monotonic(), _asking(request)
        over = self.abandoned and (asking[0] is self or asking in self.asked)
        first = now if self.abandoned else self.asked.setdefault(asking, now)
        if over or now - first > PATIENCE:
            raise NetworkError(
                f"the Hub did not answer for {now - first:.0f} seconds; try again later"
            )
        given = request.extensions.get("timeout", {})
        kinds = ("connect", "read", "write", "pool")
        limits = {kind: min(given.get(kind) or PATIENCE, PATIENCE) for kind in kinds}
        request.extensions = {**request.extensions, "timeout": limits}

    def _after(self, response: Any) -> None:
        self.asked.pop(_asking(response.request), None)


def _asking(request: Any) -> tuple[threading.Thread, str, str]:
    """The thread that makes a request, and what it asks for."""
    return threading.current_thread(), request.method, str(request.url)


def _let_go() -> None:
    """Let Python exit without the thread pools of a call, which may wait for a Hub that is silent."""
    if any(isinstance(thread, _Call) for thread in threading.enumerate()):
        waited_for: Any = pools._threads_queues
        for worker in list(waited_for):
            if worker.daemon:  # as the thread that made it
                waited_for.pop(worker, None)


# Python waits for the workers of all thread pools when it exits, and has no public way around it.
threading._register_atexit(_let_go)  # type: ignore[attr-defined]


def _session(get: Callable[[], Any]) -> Any:
    """The session of the Hub's client. It fails on settings of a proxy or of certificates."""
    try:
        return get()
    except Exception as error:
        raise NetworkError(
            f"the settings of a proxy or of certificates cannot be used ({without_passwords(error)}); "
            "check HTTPS_PROXY, HTTP_PROXY, ALL_PROXY, SSL_CERT_FILE and SSL_CERT_DIR"
        ) from error


def without_passwords(text: object, secret: str | None = None) -> str:
    """A text of the Hub or its client, in one line, without a token or the user of an address."""
    hidden = str(text).replace(secret, "<token>") if secret else str(text)
    return shown(re.sub(r"//[^/@\s]*@", "//", hidden), 300)
