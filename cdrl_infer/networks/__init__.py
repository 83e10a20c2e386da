"""Networks, one class each, conditional or not; `cdrl_infer.storage.folder` names them in folders."""
