"""What `cdrl-sample` writes: grids, films of the levels, and scatter plots for points in the plane."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

    from cdrl_infer.drawing import CDRLPipelineOutput
    from cdrl_infer.model import CDRLModel
    from cdrl_infer.processes import Processes
    from cdrl_infer.sampler import LevelEnd

FILM_IMAGES, FILM_POINTS = 64, 2000  # the most that a film shows
FILM_MILLISECONDS = 700  # per frame; the last stays three times as long


class Film:
    """Keeps what each level did, and writes it as an animation.

    Args:
        model: the model that draws.
        columns: number of images in a row.
    """

    def __init__(self, model: CDRLModel, columns: int | None) -> None:
        self.model = model
        self.columns = columns
        self.of_points = draws_points(model)
        self.limit = FILM_POINTS if self.of_points else FILM_IMAGES
        self.batches: dict[int, dict[str, list[Any]]] = {}

    def __call__(self, end: LevelEnd, first: int) -> None:
        """Keep a level's proposals and refined images, at most as many as the film shows."""
        frames = self.batches.setdefault(first, {})
        room = max(0, self.limit - first)
        for what, images in (("proposal", end.proposal), ("refined", end.refined)):
            frames[f"level {end.t - 1}: {what}"] = self._kept(images[:room])

    def gather(self, processes: Processes) -> None:
        """Get the batches that the other processes have kept."""
        for batches in processes.together(lambda: self.batches):
            self.batches.update(batches)

    @property
    def frames(self) -> dict[str, list[Any]]:
        """The images of all batches, in order, by caption."""
        frames: dict[str, list[Any]] = {}
        for _, batch in sorted(self.batches.items()):
            for caption, images in batch.items():
                frames.setdefault(caption, []).extend(images)
        return frames

    def write(self, path: Path, output: CDRLPipelineOutput) -> None:
        """Write noise (the first draw from each seed), what was kept, and the result."""
        from cdrl_infer.images import captioned, save_gif
        from cdrl_infer.random import PerImageRandom

        random = PerImageRandom.from_seeds((output.seeds or [])[: self.limit], "cpu")
        noise = random.normal(self.model.image.shape)
        shots = {
            f"level {self.model.schedule.num_levels}: noise": self._kept(noise),
            **self.frames,
        }
        frames = [captioned(self._frame(items), caption) for caption, items in shots.items()]
        result = sheet(list(output.images)[: self.limit], self.columns)
        frames.append(captioned(result, "denoised"))
        save_gif(frames, path, [FILM_MILLISECONDS] * (len(frames) - 1) + [3 * FILM_MILLISECONDS])

    def _kept(self, images: Tensor) -> list[Any]:
        """Pictures of 8 bits, or points that may lie outside [-1, 1]²."""
        from cdrl_infer.images import to_pil

        return images.flatten(1).tolist() if self.of_points else to_pil(images)

    def _frame(self, items: list[Any]) -> Image.Image:
        import torch

        from cdrl_infer.images import scatter

        return scatter(torch.tensor(items)) if self.of_points else sheet(items, self.columns)


def draws_points(model: CDRLModel) -> bool:
    """Whether the model's images are points in the plane."""
    from cdrl_infer.images import POINT

    return model.image.shape == POINT


def sheet(images: Sequence[Image.Image], columns: int | None) -> Image.Image:
    """A grid of images, or a scatter plot of points."""
    from cdrl_infer.images import make_grid, viewing_scale
    from cdrl_infer.showing import are_points, grid

    if are_points(images):
        return grid(images)
    return make_grid(images, columns, upscale=viewing_scale(images[0]))
