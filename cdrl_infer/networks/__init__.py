"""Networks, one class each, conditional or not; `cdrl_infer.checkpoint` names them in folders."""
