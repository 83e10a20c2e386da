"""The tabs of the demo, one per file; only these modules and `cdrl_infer.demo.app` import gradio."""
