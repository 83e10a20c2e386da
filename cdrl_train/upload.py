"""Uploads of a run's model while it trains: one at a time, beside the training, and never its end."""

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
    """Sends models to a repository; what goes wrong is told, and training goes on.

    A README.md that was in the repository before the run is kept.

    Args:
        repo_id: ``user/model``; made if it does not exist.
        private: see `cdrl_infer.storage.hub.push`.
        dtype: of the stored weights.
        tell: gets a line on each upload that was made, failed or passed over.

    Raises:
        CheckpointError, InputError: the repository cannot be written to. A network that is not there
            is told only: it may come back.
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
        self._thread: threading.Thread | None = None
        try:
            hub.make_repository(repo_id, private=private)
        except NetworkError as error:
            tell(f"{error}; training starts, and the model is sent when the Hub is there")

    def start(self, model: CDRLModel, step: int) -> None:
        """Send a model in a thread; passed over while the last one is still on its way.

        The weights are written to a scratch folder first, so training may go on changing its own.
        """
        if self._thread is not None and self._thread.is_alive():
            self.tell(f"step {step} is not sent to {self.repo_id}: an earlier one is on its way")
            return
        scratch = tempfile.TemporaryDirectory()
        folder = Path(scratch.name) / "model"
        try:
            save_model(model, folder, dtype=self.dtype)
        except CDRLError as error:
            scratch.cleanup()
            self.tell(f"step {step} is not sent to {self.repo_id}: {error}")
            return

        def send() -> None:
            with scratch:
                self._send(folder, f"Training step {step}")

        self._thread = threading.Thread(target=send, daemon=True)  # no upload delays an interrupt
        self._thread.start()

    def finish(self, folder: Path, step: int) -> bool:
        """Send the last model once the upload before it is through; whether it arrived."""
        if self._thread is not None:
            self._thread.join()
        return self._send(folder, f"End of training, step {step}")

    def _send(self, folder: Path, message: str) -> bool:
        try:
            pushed = hub.push(
                folder, self.repo_id, commit_message=message, overwrite_card=self._own_card
            )
        except CDRLError as error:
            self.tell(f"not sent ({message}): {error}")
            return False
        self._own_card = not pushed.card_kept
        self.tell(f"sent to {pushed.url} ({message})")
        return True
