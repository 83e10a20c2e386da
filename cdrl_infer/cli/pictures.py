"""The images that `cdrl-score` is given: found, checked and decoded one by one."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from glob import glob
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import click

from cdrl_infer.errors import LONGEST, InputError, listing, shown

if TYPE_CHECKING:
    from torch import Tensor

    from cdrl_infer.images import Header
    from cdrl_infer.processes import Processes
    from cdrl_infer.scoring.scorer import Scorer

MAX_NAME = 80  # characters in the name of an overlay; file systems allow 255 bytes


class Skipped:
    """Counts the files that cannot be used."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, reason: object) -> None:
        """Name one on stderr."""
        from tqdm import tqdm

        self.count += 1
        tqdm.write(f"cdrl-score: skipped: {shown(reason, LONGEST)}", file=sys.stderr)

    def stop(self, tell: bool = True) -> NoReturn:
        """End here, because no file is left: an empty table would look like a result."""
        if tell:
            reason = "none of the files could be read, nothing is written"
            click.echo(f"cdrl-score: error: {reason}", err=True)
        raise click.exceptions.Exit(1)


def find_images(given: Sequence[str], skipped: Skipped) -> tuple[list[Path], list[str]]:
    """The files, each once, in the order given, and a line about each folder.

    Raises:
        InputError: there are no files.
    """
    from cdrl_infer import images

    found: dict[Path, None] = {}
    folders = []
    for text in given:
        there = Path(text).exists()
        for match in [text] if there else sorted(glob(text, recursive=True)) or [text]:
            path = Path(match)
            if not path.is_dir():
                found[path] = None
                continue
            folder = images.find_images(path)
            if folder.files:
                folders.append(folder.told())
            else:
                skipped(f"{folder.told()}; looked for {', '.join(images.SUFFIXES)}")
            found.update(dict.fromkeys(folder.files))
    if not found:
        raise InputError(f"expected at least one image, found none in {listing(given)}")
    return list(found), folders


def read_headers(paths: Sequence[Path], skipped: Skipped) -> dict[Path, Header]:
    """The headers of all files that can be read."""
    from cdrl_infer.images import read_header

    headers = {}
    for path in paths:
        try:
            headers[path] = read_header(path)
        except InputError as error:
            skipped(error)
    return headers


def overlay_names(paths: Sequence[Path]) -> dict[Path, str]:
    """A file name for the overlay of each image; all differ, also where case does not count.

    A name is the image's path below the folder that all images share, with hyphens between its parts.
    Names that would be the same are numbered.
    """
    parts = {path: path.absolute().parts for path in paths}
    depths = zip(*(p[:-1] for p in parts.values()), strict=False)
    common = sum(1 for _ in takewhile(lambda folders: len(set(folders)) == 1, depths))
    names: dict[Path, str] = {}
    taken: set[str] = set()
    repeats: dict[str, int] = {}
    for path in paths:
        own = "-".join([*parts[path][common:-1], path.stem])[-MAX_NAME:]
        name = own
        while name.casefold() in taken:
            repeats[own] = repeats.get(own, 1) + 1
            name = f"{own}-{repeats[own]}"
        taken.add(name.casefold())
        names[path] = f"{name}.png"
    return names


def keep_inputs(outputs: Iterable[Path], inputs: Iterable[Path]) -> None:
    """Refuse to overwrite an input image, as ``--plot *.png`` would do."""
    images = {path.resolve() for path in inputs}
    for output in outputs:
        if output.resolve() in images:
            raise InputError(f"{output} is one of the images: expected another name to write to")


def check_pictures(
    scorer: Scorer,
    headers: Mapping[Path, Header],
    resize: bool,
    grey: bool,
    processes: Processes,
) -> None:
    """Refuse images that the model cannot take before any image is scored; processes share the files.

    Pixels are read only where the header does not tell whether they are coloured or transparent.
    """
    from cdrl_infer.images import MODES, check_picture, decode_image, read_images

    shape = scorer.model.image.shape
    told = {"1", "L", MODES.get(shape[0])}

    def wrong() -> list[tuple[int, str]]:
        errors = []
        for k, (path, header) in processes.mine(list(enumerate(headers.items()))):
            try:
                check_picture(header, shape, resize=resize)
                if header.mode in told and not header.transparency:
                    continue
                try:
                    picture = decode_image(path)
                except InputError:  # it will be skipped
                    continue
                read_images(picture, shape, resize=resize, grey=grey)
            except InputError as error:
                errors.append((k, f"{path}: {error}"))
        return errors

    found = sorted(error for part in processes.together(wrong) for error in part)
    errors = [text for _, text in found]
    if errors:
        more = f" ({len(errors)} such files)" if len(errors) > 1 else ""
        channels, height, width = shape
        raise InputError(
            f"{errors[0]}{more}; the images of {scorer.name!r} have {channels} channel(s) of "
            f"{width} x {height}"
        )


class Pictures:
    """Decodes files; skips those that cannot be decoded.

    Args:
        shape: (C, H, W) of the model's images.
        resize, grey: see `cdrl_infer.images.read_images`.
        skipped: is told of the files that cannot be decoded.
    """

    def __init__(
        self, shape: tuple[int, int, int], resize: bool, grey: bool, skipped: Skipped
    ) -> None:
        self.shape = shape
        self.resize = resize
        self.grey = grey
        self.skipped = skipped

    def read(self, paths: Iterable[Path]) -> dict[Path, Tensor]:
        """(C, H, W) in [0, 1] of each file that can be decoded."""
        from cdrl_infer.images import decode_image, read_images

        found = {}
        for path in paths:
            try:
                picture = decode_image(path)
                pixels = read_images(picture, self.shape, resize=self.resize, grey=self.grey)
            except InputError as error:
                self.skipped(error)
                continue
            found[path] = pixels[0]
        return found
