"""Train CDRL models: warm start, cooperative phase, exact resume, export to `cdrl_infer`'s folders."""
