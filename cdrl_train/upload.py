"""Upload the model of a run while it trains; a failed upload does not end the training."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

import torch

from cdrl_infer.errors import CDRLError, NetworkError
from cdrl_infer.model import CDRLModel
from cdrl_infer.storage import hub
from cdrl_infer.storage.folder import save_model


class Uploads:
    """Sends models to a repository; reports errors and lets training go on.

    A README.md that was in the repository before the run is kept.

    Args:
        repo_id: ``user/model``; created if it does not exist.
        private: see `cdrl_infer.storage.hub.push`.
        dtype: type of the stored weights.
        tell: called with one line about each upload that succeeded, failed or was skipped.

    Raises:
        CheckpointError, InputError: the repository cannot be written to. A missing network is only
            reported, because it may come back.
    """

    def __init__(
        self,
        repo_id: str,
        *,
        private: bool | None,
        dtype: torch.dtype,
        tell: Callable[[str], object],
    ) -> None:
        self.repo_id = repo_id
        self.dtype = dtype
        self.tell = tell
        self._own_card = False
        self._arrived = False  # the last upload
        self._thread: threading.Thread | None = None
        try:
            hub.make_repository(repo_id, private=private)
        except NetworkError as error:
            tell(f"{error}; training starts, and later uploads try again")

    def start(self, model: CDRLModel, step: int) -> None:
        """Send a model in a thread; skipped while the previous upload runs.

        The model is written to a scratch folder first, so training can change its weights.
        """
        if self._thread is not None and self._thread.is_alive():
            self.tell(
                f"step {step} is not sent to {self.repo_id}: the previous upload is still running"
            )
            return
        scratch = tempfile.TemporaryDirectory()
        folder, message = Path(scratch.name) / "model", f"Training step {step}"
        try:
            save_model(model, folder, dtype=self.dtype)
        except CDRLError as error:
            scratch.cleanup()
            self.tell(f"not sent ({message}): {error}")
            return

        def send() -> None:
            with scratch:
                self._send(folder, message)

        self._run(send)

    def finish(self, folder: Path, step: int, stop: Callable[[], bool]) -> bool:
        """Wait for the previous upload, then send the last model; returns whether it arrived.

        A request to stop ends the wait.
        """
        self._wait(stop)
        self._arrived = False
        if not stop():
            self._run(lambda: self._send(folder, f"End of training, step {step}"))
            self._wait(stop)
        return self._arrived

    def _run(self, send: Callable[[], None]) -> None:
        # `HfApi.run_as_future` would keep an interrupted program alive until its uploads end.
        self._thread = threading.Thread(target=send, daemon=True)
        self._thread.start()

    def _wait(self, stop: Callable[[], bool]) -> None:
        while self._thread is not None and self._thread.is_alive() and not stop():
            self._thread.join(0.2)

    def _send(self, folder: Path, message: str) -> None:
        try:
            pushed = hub.push(
                folder, self.repo_id, commit_message=message, overwrite_card=self._own_card
            )
        except CDRLError as error:
            self.tell(f"not sent ({message}): {error}")
            return
        self._own_card, self._arrived = not pushed.card_kept, True
        self.tell(f"sent to {pushed.url} ({message})")
