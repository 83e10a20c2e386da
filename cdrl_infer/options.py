"""The options of drawing images: the same for every way of drawing, checked once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, SupportsIndex, get_args

import torch

from cdrl_infer.arguments import (
    Noise,
    Progress,
    as_list,
    check_choice,
    count_images,
    flag,
    integer,
    number,
    positive,
)
from cdrl_infer.device import Precision, resolved_precision
from cdrl_infer.errors import InputError, quoted
from cdrl_infer.habits import CALLS, refuse_unknown
from cdrl_infer.kernels import KERNELS
from cdrl_infer.kernels.base import Kernel
from cdrl_infer.model import CDRLModel
from cdrl_infer.processes import ALONE, Processes
from cdrl_infer.sampler import CooperativeSampler, LevelEnd

OutputType = Literal["pil", "np", "pt"]
DrawOn = Literal["cpu", "device"]


@dataclass(frozen=True, kw_only=True)
class SamplingOptions:
    """How to draw images.

    Args:
        num_images: N; by default as many as there are labels, seeds or generators, else 1.
        seeds: one integer in 0 … 2³² - 1 per image, or one for the first of consecutive seeds; by
            default new ones. An image depends on its seed and label, and on the others of its batch by
            no more than rounding: one grey level at most. With a kernel that can reject a move,
            rounding can tip a decision, so this holds almost always.
        generator: in place of seeds: one from which N seeds are drawn, or N, one per image.
        langevin_steps: K, steps of the kernel: one for all transitions or one per transition, noisiest
            first; by default the model's. 0 leaves the initializer's proposals as they are.
        kernel: the transition kernel: a name in `cdrl_infer.kernels.KERNELS`, or an object such as
            ``HMC(leapfrog_steps=5)``; by default the model's. "langevin" is the paper's;
            "leimkuhler-matthews" has the right variance also with long steps; "mala" and "hmc" are exact
            at each level, for more steps: find their step_scale by `adapt_step_scale`.
        step_scale: multiplies the schedule's step variance: one for all transitions or one per
            transition, noisiest first; by default the model's with the model's kernel, else 1.
        restarts: times each level is noised again and redone, each as costly as the first time. Images
            come nearer to the energy where they are inpainted or composed; see docs/control.md. By
            default 0, and 1 for `compose`.
        batch_size: images drawn at once. Memory use grows with it, not with N, apart from the result.
        output_type: "pil", "np" or "pt"; see `CDRLPipelineOutput`.
        callback_on_level_end: called after each transition of each batch with a `LevelEnd`, to be read,
            not changed, and the number of the batch's first image.
        progress: show a bar on stderr; by default only if that is a terminal. A dict has options of
            ``tqdm``.
        draw_on: where noise is drawn: "cpu" gives the same images on every device, "device" is quicker
            on an accelerator.
        precision: "bfloat16" computes the convolutions of the chains in bfloat16; steps, last denoising
            and energies stay float32. Pictures differ a little, see docs/control.md. "auto": the faster
            of the two on the device, for a kernel that accepts every move.
        cuda_graphs: on a GPU, record the energy's gradient once for a size of batch and launch its
            operations together, which is faster. A recording keeps the memory that the gradient needs.
            Without effect elsewhere.
        processes: those that share the batches, ``Processes.join()`` of `cdrl_infer.processes`. Each of
            them makes the same call and gets the result of one process. callback_on_level_end is called
            in the process that draws the batch; the first one shows the bar.

    Raises:
        InputError: a value is not valid.
    """

    num_images: int | None = None
    seeds: SupportsIndex | Iterable[SupportsIndex] | None = None
    generator: torch.Generator | Sequence[torch.Generator] | None = None
    langevin_steps: int | Sequence[int] | None = None
    kernel: str | Kernel[Any] | None = None
    step_scale: float | Sequence[float] | None = None
    restarts: int | None = None
    batch_size: int = 64
    output_type: OutputType = "pil"
    callback_on_level_end: Callable[[LevelEnd, int], None] | None = None
    progress: Progress = None
    draw_on: DrawOn = "cpu"
    precision: Precision = "float32"
    cuda_graphs: bool = True
    processes: Processes = ALONE

    def __post_init__(self) -> None:
        check_choice("output_type", self.output_type, get_args(OutputType))
        check_choice("draw_on", self.draw_on, get_args(DrawOn))
        check_choice("precision", self.precision, get_args(Precision))
        watcher: Any = self.callback_on_level_end
        if watcher is not None and not callable(watcher):
            raise InputError(f"callback_on_level_end must be a function, got {quoted(watcher)}")
        flag("cuda_graphs", self.cuda_graphs)
        if not isinstance(self.processes, Processes):
            raise InputError(
                "processes must be those of cdrl_infer.processes.Processes.join(), got "
                f"{quoted(self.processes)}"
            )
        if self.kernel is not None:
            find_kernel(self.kernel)  # raises for an unknown one
        checked = {
            "seeds": as_list(self.seeds),
            "generator": as_list(self.generator),
            "langevin_steps": _each(integer, "langevin_steps", self.langevin_steps),
            "step_scale": _each(number, "step_scale", self.step_scale),
            "restarts": None if self.restarts is None else integer("restarts", self.restarts),
            "batch_size": positive("batch_size", self.batch_size),
        }
        for name, value in checked.items():
            object.__setattr__(self, name, value)

    @classmethod
    def of(cls, options: dict[str, Any], *others: str) -> SamplingOptions:
        """From keyword arguments.

        Args:
            options: by name. ``return_dict`` of diffusers is taken and changes nothing, since an output
                can be used as its tuple, too.
            others: names of the call's other arguments, for the message.

        Raises:
            InputError: an unknown name, or a value that is not valid.
        """
        known = [*others, *(f.name for f in fields(cls))]
        refuse_unknown(options, [*known, "return_dict"], CALLS)
        flag("return_dict", options.get("return_dict", True))
        options = {name: value for name, value in options.items() if name != "return_dict"}
        return cls(**options)

    def count(self, **given: Any) -> int:
        """N, from num_images and the arguments that are lists.

        Args:
            given: lists of one entry per image, or of one for all images.
        """
        several = {name: value for name, value in given.items() if not _is_one(value)}
        return count_images(self.num_images, **several, seeds=self.seeds, generator=self.generator)

    def noise(self, count: int) -> Noise:
        """Where the noise of N images comes from."""
        return Noise.of(self.seeds, self.generator, count)

    def sampler(self, model: CDRLModel, restarts: int = 0) -> CooperativeSampler:
        """The sampler for a model, whose defaults stand in for options that were not given.

        Args:
            model: gives schedule and defaults.
            restarts: those if none were asked for.
        """
        own = model.sampler
        kernel = find_kernel(own.kernel if self.kernel is None else self.kernel)
        usual = own.step_scale if kernel == find_kernel(own.kernel) else 1.0
        precision = self.precision
        if precision == "auto" and kernel.optimal_acceptance is not None:
            precision = "float32"
        return CooperativeSampler(
            model.schedule,
            own.langevin_steps if self.langevin_steps is None else self.langevin_steps,
            kernel,
            usual if self.step_scale is None else self.step_scale,
            own.score_scale,
            restarts if self.restarts is None else self.restarts,
            resolved_precision(precision, model.device),
            self.cuda_graphs,
        )


def find_kernel(kernel: object) -> Kernel[Any]:
    """The kernel of a name, with its own defaults, or the kernel that is given."""
    if isinstance(kernel, Kernel):
        return kernel
    if isinstance(kernel, type) and issubclass(kernel, Kernel):
        raise InputError(f"kernel must be an object, got the class; write {kernel.__name__}()")
    check_choice("kernel", kernel, tuple(KERNELS))
    try:
        return KERNELS[str(kernel)]()
    except TypeError as error:
        raise InputError(
            f"the kernel {kernel!r} has no defaults, pass an object ({error})"
        ) from None


def kernel_name(kernel: Kernel[Any]) -> str:
    """The name under which a kernel is registered, else that of its class."""
    return KERNELS.name_of(type(kernel)) or type(kernel).__name__


def _is_one(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 1


def _each(check: Callable[[str, Any], Any], name: str, value: Any) -> Any:
    """One value, or a tuple of values, each checked; None unchanged."""
    value = as_list(value)
    if isinstance(value, list):
        return tuple(check(name, item) for item in value)
    return None if value is None else check(name, value)
