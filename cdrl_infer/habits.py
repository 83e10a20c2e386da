"""The names that users of diffusers know, and what this package has in their place.

A name means the same in both, or an error says ours. A call of the pipeline has the same
``guidance_scale``, ``class_labels``, ``generator``, ``output_type`` and ``return_dict``.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from typing import Any

from cdrl_infer.errors import InputError, did_you_mean, listing

_NO_TEXT = "the model reads no texts: use class_labels=, or pipe.compose('red & dress')"
_KERNEL = "use kernel=, such as kernel='mala' or kernel=HMC(leapfrog_steps=5)"
_CALLBACK = "use callback_on_level_end=, called as callback(level_end, number_of_first_image)"
_MEMORY = "a smaller batch_size= saves memory"

CALLS = {
    "seed": "use seeds=, one per image or the first of consecutive ones",
    "num_inference_steps": "the levels are the model's; use langevin_steps=, steps at each level",
    "timesteps": "the levels are the model's, pipe.model.schedule",
    "sigmas": "the levels are the model's, pipe.model.schedule",
    "eta": "use step_scale= for the size of the steps",
    "prompt": _NO_TEXT,
    "negative_prompt": "use pipe.compose('~red'), or guidance_scale= with class_labels=",
    "num_images_per_prompt": "use num_images=",
    "num_samples": "use num_images=",
    "latents": "the first noise follows from seeds= or generator=",
    "image": "use pipe.inpaint(image, mask)",
    "mask_image": "use pipe.inpaint(image, mask)",
    "height": "the size is the model's, pipe.model.image",
    "width": "the size is the model's, pipe.model.image",
    "labels": "use class_labels=",
    "scheduler": _KERNEL,
    "sampler": _KERNEL,
    "leapfrog_steps": _KERNEL,
    "callback": _CALLBACK,
    "callback_on_step_end": _CALLBACK,
    "callback_on_step_end_tensor_inputs": _CALLBACK,
    "callback_steps": _CALLBACK,
}

LOADING = {
    "pretrained_model_name_or_path": "use model=",
    "torch_dtype": "use dtype=",
    "use_auth_token": "use token=",
    "device_map": "use device=, such as device='cuda'",
    "use_safetensors": "weights are always safetensors",
    "low_cpu_mem_usage": "leave it out, sizes are checked before anything is allocated",
    "safety_checker": "leave it out, there is none",
    "custom_pipeline": "code is never loaded from a repository; import your own instead",
    "trust_remote_code": "code is never loaded from a repository; import your own instead",
    "scheduler": "use kernel= when you draw images",
}

ATTRIBUTES = {
    "unet": "use pipe.components['ebm'] and pipe.components['initializer']",
    "transformer": "use pipe.components['ebm'] and pipe.components['initializer']",
    "scheduler": "use pipe.model.schedule for the levels and kernel= for the steps",
    "enable_attention_slicing": _MEMORY,
    "enable_model_cpu_offload": _MEMORY,
    "enable_sequential_cpu_offload": _MEMORY,
    "enable_xformers_memory_efficient_attention": _MEMORY,
    "progress_bar": "use pipe.set_progress_bar_config(...)",
    "numpy_to_pil": "images are PIL pictures; output_type='np' and 'pt' give arrays",
}


def refuse_unknown(given: Iterable[str], known: Iterable[str], foreign: dict[str, str]) -> None:
    """Refuse names of options that do not exist.

    Args:
        given: the names that the caller used.
        known: the names that exist.
        foreign: names of diffusers, and what to use in their place.

    Raises:
        InputError: a name is not known.
    """
    known = list(known)
    for name in given:
        if name in known:
            continue
        if name in foreign:
            raise InputError(f"there is no option {name!r}: {foreign[name]}")
        raise InputError(
            f"unknown option {name!r}, expected one of {listing(known, 20)}"
            f"{did_you_mean(name, known)}"
        )


def options_of(function: Callable[..., Any]) -> list[str]:
    """The names of a function's keyword-only arguments."""
    found = inspect.signature(function).parameters.values()
    return [one.name for one in found if one.kind is one.KEYWORD_ONLY]
