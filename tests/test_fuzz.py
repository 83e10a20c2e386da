"""Hostile files, made by mutation: only our own errors come out, soon and with little memory."""

from __future__ import annotations

import copy
import io
import json
import re
import resource
import struct
import sys
import time
import tracemalloc
import zipfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from conftest import CLASSES, make_statistics
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from PIL import Image

from cdrl_infer.errors import CDRLError
from cdrl_infer.images import open_image
from cdrl_infer.model import Attribute, CDRLModel, ImageShape
from cdrl_infer.networks.heads import InnerProductEnergy, ResidualInitializer
from cdrl_infer.networks.patch_unet import PatchUNet
from cdrl_infer.networks.residual_ebm import ResidualEBM
from cdrl_infer.networks.unet import UNet
from cdrl_infer.schedule import NoiseSchedule
from cdrl_infer.storage.authors import convert
from cdrl_infer.storage.card import render
from cdrl_infer.storage.folder import load_model, save_model

AUTHORS = Path(__file__).parent / "fixtures" / "authors-uncond.pth.tar"
MEGABYTES = 200  # the memory that all tries together may add; a single blow-up takes gigabytes
SECONDS = 3  # of computing, the longest try; on a slow machine
TEXTS = st.text("abc/.\\\n\0é\u202e", max_size=8)  # of all letters, a table would be built
QUICK = {"model": 250, "checkpoint": 25, "picture": 150}
SLOW = {"model": 8_500, "checkpoint": 500, "picture": 1_000}  # 10,000 in all

HOSTILE: list[Any] = [
    *(None, True, "", [], {}, 0, -1, 1, 2, 3, 7, 64, 1000, 2**31, 2**63, 10**9, 10**18, 10**30),
    *(10**400, 10**4000, -(10**4000), 0.5, 1e308, -1e-300, 1e400, "cdrl", "os", "../../x", "/etc"),
    *("\ud800", "\x1b[2J\n", "x" * 5000, [1] * 5000, [0] * 50_000, [10**9] * 3, [[[[]]]]),
    *(["cdrl", "InnerProductEnergy"], ["cdrl", "ResidualEBM"], ["os", "system"], {"a": {"b": 1}}),
]
FOREIGN = [b"[" * 200_000, b'{"a":' * 50_000, b"1" * 10_000, b"\xff\xfe", b" " * 2**21]


@pytest.fixture
def bounded() -> Iterator[None]:
    """The process's peak of memory before and after."""
    unit = 1 if sys.platform == "darwin" else 1024
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown * unit <= MEGABYTES * 1e6


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of everything inside a JSON value."""
    yield path
    if isinstance(value, (dict, list)):
        for key in value if isinstance(value, dict) else range(len(value))[:20]:
            yield from places(value[key], (*path, key))


def flipped(content: bytes, values: dict[int, int]) -> bytes:
    changed = bytearray(content)
    for at, value in values.items():
        changed[at] = value
    return bytes(changed)


def spliced(content: bytes, start: int, stop: int | None, more: bytes = b"") -> bytes:
    return content[:start] + more + (b"" if stop is None else content[stop:])


# What is drawn is kept for the whole test: changes, not the content of large files.
Change = Callable[[bytes], bytes]


@st.composite
def changed_json(draw: st.DrawFn, content: bytes) -> Change:
    """Values replaced, keys dropped or added; not always JSON in the end."""
    config = json.loads(content)
    for _ in range(draw(st.sampled_from([1, 1, 1, 2, 3]))):  # the first error hides the others
        paths = [path for path in places(config) if path]
        path = draw(st.sampled_from(paths)) if paths else ("a",)
        parent = config
        for key in path[:-1]:
            parent = parent[key]
        kind = draw(st.sampled_from(["replace", "replace", "replace", "drop", "add"]))
        value = copy.deepcopy(
            draw(st.one_of(st.sampled_from(HOSTILE), st.integers(), st.floats(), TEXTS))
        )
        if kind == "drop" and paths:
            del parent[path[-1]]
        elif kind == "add" and isinstance(parent, dict):
            parent[draw(st.sampled_from(["widths", "class", "module", "path", "a\n"]))] = value
        else:
            parent[path[-1]] = value
    return partial(spliced, start=0, stop=None, more=json.dumps(config).encode())


@st.composite
def changed_bytes(draw: st.DrawFn, content: bytes) -> Change:
    """Bits flipped, cut, repeated, or something else altogether."""
    kind = draw(st.sampled_from(["flip", "flip", "cut", "insert", "foreign"]))
    anywhere = st.integers(0, len(content) - 1)
    if kind == "flip":
        # The first bytes hold the structure of most formats.
        position = st.one_of(st.integers(0, min(800, len(content) - 1)), anywhere)
        values = st.dictionaries(position, st.integers(0, 255), min_size=1, max_size=8)
        return partial(flipped, values=draw(values))
    if kind == "cut":
        return partial(spliced, start=draw(anywhere), stop=None)
    if kind == "insert":
        at = draw(anywhere)
        return partial(spliced, start=at, stop=at, more=draw(st.binary(max_size=64)))
    more = draw(st.one_of(st.binary(max_size=64), st.sampled_from(FOREIGN)))
    return partial(spliced, start=0, stop=None, more=more)


@st.composite
def changed_header(draw: st.DrawFn, content: bytes) -> Change:
    """The header of a safetensors file changed as JSON, or its length alone."""
    (length,) = struct.unpack("<Q", content[:8])
    header, end = content[8 : 8 + length], 8 + length
    if draw(st.booleans()):
        header = draw(changed_json(header))(header)
        length = len(header)
    if draw(st.integers(0, 3)) == 0:
        length = draw(st.one_of(st.integers(0, 2**64 - 1), st.sampled_from([0, 1, 2**31, 2**63])))
    return partial(spliced, start=0, stop=end, more=struct.pack("<Q", length) + header)


Files = tuple[Path, dict[str, bytes]]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Files]:
    """The smallest models, one for each class of networks, on disk and in memory."""
    sizes: dict[str, Any] = {"widths": (4,), "num_blocks": 1, "patch_size": 1, "embedding_dim": 4}
    few: dict[str, Any] = {"num_blocks": 1, "frequencies": 2, "embedding_dim": 4}
    patch = partial(PatchUNet, num_classes=(3,), **sizes)
    networks = [
        (InnerProductEnergy(patch()), ResidualInitializer(patch())),
        (
            ResidualEBM(1, 2, width_multipliers=(1,), num_classes=(3,), **few),
            ResidualInitializer(
                UNet(1, (2,), attention_levels=(), groups=2, num_classes=(3,), **few)
            ),
        ),
    ]
    saved = []
    for ebm, initializer in networks:
        model = CDRLModel(
            ebm,
            initializer,
            schedule=NoiseSchedule(num_levels=2),
            image=ImageShape(1, 4, 4),
            labels=(Attribute("class", CLASSES),),
        )
        model.statistics = make_statistics([0.5, 1.0, 2.0], num_levels=2, model=model)
        model.model_card = render(model, "tiny", facts={}, text="")
        folder = tmp_path_factory.mktemp("fuzz") / "model"
        save_model(model, folder)
        paths = [path for path in folder.rglob("*") if path.is_file()]
        saved.append((folder, {p.relative_to(folder).as_posix(): p.read_bytes() for p in paths}))
    return saved


def refusal(opening: Callable[[Path], object], path: Path) -> str:
    """The text of our own error about a file, one line and in time; "" if the file was opened."""
    start = time.process_time()
    try:
        opening(path)
        text = ""
    except CDRLError as error:
        text = str(error)
        assert text.isprintable() and 0 < len(text) < 1000, text[:1000]
    assert time.process_time() - start < SECONDS
    return text


def attempts(
    tries: int,
    changed: Callable[[st.DataObject], AbstractContextManager[Path]],
    opening: Callable[[Path], object],
) -> tuple[int, int]:
    """The numbers of hostile files that were opened and refused."""
    outcomes = [0, 0]

    @settings(
        max_examples=tries,
        deadline=None,
        database=None,
        phases=(Phase.generate,),  # a failure is told as it is: to shrink it takes minutes
        suppress_health_check=list(HealthCheck),
        derandomize=True,
    )
    @given(st.data())
    def attempt(data: st.DataObject) -> None:
        with changed(data) as path:
            outcomes[refusal(opening, path) != ""] += 1

    attempt()
    assert sum(outcomes) >= tries
    return outcomes[0], outcomes[1]


def try_models(files: list[Files], tries: int) -> None:
    @contextmanager
    def changed(data: st.DataObject) -> Iterator[Path]:
        folder, contents = data.draw(st.sampled_from(files))
        count = data.draw(st.sampled_from([1, 1, 1, 2]))
        names = data.draw(st.sets(st.sampled_from(sorted(contents)), min_size=1, max_size=count))
        try:
            for name in sorted(names):
                content = contents[name]
                ways = [changed_bytes(content)]
                ways += [changed_json(content)] * (4 if name.endswith(".json") else 0)
                ways += [changed_header(content)] * (2 if name.endswith(".safetensors") else 0)
                (folder / name).write_bytes(data.draw(st.one_of(ways))(content))
            yield folder
        finally:
            for name in names:
                (folder / name).write_bytes(contents[name])

    loaded, refused = attempts(tries, changed, load_model)
    assert all(refusal(load_model, folder) == "" for folder, _ in files)
    assert refused > loaded > 0


def try_checkpoints(folder: Path, tries: int) -> None:
    """The file of the authors, its pickle changed inside an archive that is whole, or all of it."""
    with zipfile.ZipFile(AUTHORS) as archive:
        entries = {entry.filename: archive.read(entry) for entry in archive.infolist()}
    pickled = next(name for name in entries if name.endswith("/data.pkl"))
    path, whole = folder / "changed.pth.tar", AUTHORS.read_bytes()

    @contextmanager
    def changed(data: st.DataObject) -> Iterator[Path]:
        if data.draw(st.integers(0, 3)) == 0:
            path.write_bytes(data.draw(changed_bytes(whole))(whole))
        else:
            pickle = data.draw(changed_bytes(entries[pickled]))(entries[pickled])
            packing = data.draw(st.sampled_from([zipfile.ZIP_STORED] * 9 + [zipfile.ZIP_DEFLATED]))
            with zipfile.ZipFile(path, "w", packing) as archive:
                for name, content in {**entries, pickled: pickle}.items():
                    archive.writestr(name, content)
        yield path

    refused = attempts(tries, changed, convert)[1]
    assert refused > tries // 2


def try_pictures(folder: Path, tries: int) -> None:
    contents = []
    for kind in ("PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF"):
        Image.frombytes("RGB", (9, 9), bytes(range(243))).save(buffer := io.BytesIO(), kind)
        contents.append(buffer.getvalue())

    @contextmanager
    def changed(data: st.DataObject) -> Iterator[Path]:
        content = data.draw(st.sampled_from(contents))
        (folder / "a").write_bytes(data.draw(changed_bytes(content))(content))
        yield folder / "a"

    opened, refused = attempts(tries, changed, open_image)
    assert opened > 0 and refused > 0


def test_models(files: list[Files], bounded: None) -> None:
    try_models(files, QUICK["model"])


def test_checkpoints(tmp_path: Path, bounded: None) -> None:
    try_checkpoints(tmp_path, QUICK["checkpoint"])


def test_pictures(tmp_path: Path, bounded: None) -> None:
    try_pictures(tmp_path, QUICK["picture"])


@pytest.mark.slow
def test_10_000_tries(files: list[Files], tmp_path: Path, bounded: None) -> None:
    try_models(files, SLOW["model"])
    try_checkpoints(tmp_path, SLOW["checkpoint"])
    try_pictures(tmp_path, SLOW["picture"])


COSTLY: list[tuple[str, dict[str, Any]]] = [
    ("PatchUNet", {"widths": [1] * 300_000}),
    ("ResidualEBM", {"num_blocks": 10**9}),
    ("ResidualEBM", {"num_classes": [1] * 300_000}),
    ("UNet", {"widths": [2] * 3, "attention_levels": [0] * 250_000, "num_blocks": 200}),
]


@contextmanager
def costly(files: list[Files], name: str, sizes: dict[str, Any]) -> Iterator[Path]:
    """Absurd sizes, and a header with as many tensors as it has room for, so that many are built."""
    tensors = {
        f"{k:x}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for k in range(17_000)
    }
    header = json.dumps(tensors, separators=(",", ":")).encode()
    role = "initializer" if name == "UNet" else "ebm"
    folder, contents = files[name != "PatchUNet"]
    config = json.loads(contents[f"{role}/config.json"])
    config.get("backbone", config).update(sizes)
    try:
        (folder / role / "config.json").write_text(json.dumps(config, separators=(",", ":")))
        (folder / role / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
        yield folder
    finally:
        for path, content in contents.items():
            (folder / path).write_bytes(content)


@pytest.mark.parametrize(("name", "sizes"), COSTLY)
def test_the_costliest_networks(
    files: list[Files], name: str, sizes: dict[str, Any], bounded: None
) -> None:
    with costly(files, name, sizes) as folder:
        assert re.search(r"are absurd|num_classes is \[1, ", refusal(load_model, folder))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "sizes"), COSTLY)
def test_what_python_holds_for_them(files: list[Files], name: str, sizes: dict[str, Any]) -> None:
    with costly(files, name, sizes) as folder:
        tracemalloc.start()
        try:
            with pytest.raises(CDRLError):
                load_model(folder)
            assert tracemalloc.get_traced_memory()[1] < 1e6 * MEGABYTES
        finally:
            tracemalloc.stop()


@pytest.mark.parametrize(
    "value",
    [10**18, 10**400, -(10**4000), None, "\x1b[2J\n", [0] * 5_000, {}],
    ids=["large", "larger", "largest", "null", "text", "list", "object"],
)
def test_every_value_of_every_config_in_turn(files: list[Files], value: Any, bounded: None) -> None:
    opened = 0
    for folder, contents in files:
        for name in (name for name in contents if name.endswith(".json")):
            for path in list(places(json.loads(contents[name])))[1:]:
                changed = parent = json.loads(contents[name])
                for key in path[:-1]:
                    parent = parent[key]
                parent[path[-1]] = value
                (folder / name).write_text(json.dumps(changed))
                opened += refusal(load_model, folder) == ""
            (folder / name).write_bytes(contents[name])
    assert opened < 20  # data_variance, training and the like


@pytest.mark.parametrize("name", ["\x1b[2J\n", "x" * 5000])
def test_names_in_a_header_that_would_spoil_a_message(files: list[Files], name: str) -> None:
    folder, contents = files[0]
    file = "ebm/model.safetensors"
    tensors = {"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}
    try:
        for entry in (
            {"shape": [0], "data_offsets": [4, 4]},
            {"shape": [1], "data_offsets": [9, 13]},
        ):
            header = json.dumps({**tensors, name: {"dtype": "F32", **entry}}).encode()
            content = struct.pack("<Q", len(header)) + header + bytes(4)
            (folder / file).write_bytes(content)
            assert "not a whole safetensors file" in refusal(load_model, folder)
    finally:
        (folder / file).write_bytes(contents[file])


@pytest.mark.parametrize(
    "odd",
    ['{"images": 1, "images": 1}', '{"images": 1e999}', '{"images": -Infinity}', '{"a": ' * 9999],
)
def test_what_readers_of_json_disagree_on(files: list[Files], odd: str) -> None:
    folder, contents = files[0]
    text = contents["config.json"].decode()
    try:
        (folder / "config.json").write_text(text.replace('"training": {}', f'"training": {odd}'))
        with pytest.raises(CDRLError, match="not valid JSON"):
            load_model(folder)
    finally:
        (folder / "config.json").write_text(text)
