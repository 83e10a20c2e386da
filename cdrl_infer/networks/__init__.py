"""Networks: conditional or not, one class each; see `cdrl_infer.checkpoint` for how they are named in a folder."""
