"""Find, download and upload models on the Hugging Face Hub.

`huggingface_hub` is imported when a repository is first asked for. Bundled models and local folders
do not need it. It reads ``HF_ENDPOINT``, ``HF_HOME``, ``HF_TOKEN`` and ``HF_HUB_OFFLINE``.
"""

from cdrl_infer.storage.hub.download import WEIGHTS, find, weights_header
from cdrl_infer.storage.hub.upload import check_push, make_repository, push, variants

__all__ = ["WEIGHTS", "check_push", "find", "make_repository", "push", "variants", "weights_header"]
