"""What the demo shows, without a browser: levels, expressions, masks, uploads, words, the plane."""

from __future__ import annotations

import dataclasses
import re
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from cdrl_infer.cli.demo import main
from cdrl_infer.demo.compose import held_out, note, unseen, written
from cdrl_infer.demo.draw import IN_TURN, NOT_GIVEN, class_labels, draw
from cdrl_infer.demo.live import Runs, Stopped, steps_of
from cdrl_infer.demo.odd import in_words, judge, read_all
from cdrl_infer.demo.pieces import figure, problem, uri
from cdrl_infer.demo.plane import CELLS, EXTENT, Plane
from cdrl_infer.demo.repair import canvas, read_mask, repair
from cdrl_infer.demo.serve import open_models
from cdrl_infer.demo.uploads import MAX_UPLOAD, read_upload
from cdrl_infer.errors import InputError
from cdrl_infer.model import Attribute, CDRLModel, ImageShape
from cdrl_infer.pipeline import CDRLPipeline
from cdrl_train import toy
from cdrl_train.data.coloured import HELD_OUT

SIDES = Attribute("side", ("left", "right"))
INKS = Attribute("ink", ("red", "black", "blue"))
GO_ON = threading.Event


@pytest.fixture(scope="module")
def coloured() -> CDRLPipeline:
    return CDRLPipeline.from_pretrained("coloured-fashion-mnist")


@pytest.fixture(scope="module")
def fashion() -> CDRLPipeline:
    return CDRLPipeline.from_pretrained("fashion-mnist")


@pytest.fixture(scope="module")
def plane() -> Plane:
    return Plane(CDRLPipeline.from_pretrained("toy-2d"))


def pictures_in(html: str) -> list[str]:
    return re.findall(r'src="(data:image/png;base64,[^"]+)"', html)


class TestSteps:
    def test_they_come_in_order_while_the_work_goes_on(self) -> None:
        seen: list[int] = []

        def work(tell: Callable[[int], None]) -> None:
            for k in range(5):
                seen.append(k)
                tell(k)

        reader = steps_of(work, GO_ON())
        assert next(reader) == 0
        assert len(seen) <= 3  # one is shown, one waits, one is being told
        assert list(reader) == [1, 2, 3, 4]

    def test_a_stop_ends_the_work_at_its_next_step(self) -> None:
        stop, ended = GO_ON(), threading.Event()

        def work(tell: Callable[[int], None]) -> None:
            try:
                for k in range(10**9):
                    tell(k)
            finally:
                ended.set()

        reader = steps_of(work, stop)
        assert next(reader) == 0
        stop.set()
        with pytest.raises(Stopped):
            list(reader)
        assert ended.is_set()

    def test_so_does_a_reader_that_goes_away(self) -> None:
        ended = threading.Event()

        def work(tell: Callable[[int], None]) -> None:
            try:
                while True:
                    tell(0)
            finally:
                ended.set()

        reader = steps_of(work, GO_ON())
        next(reader)
        reader.close()  # type: ignore[attr-defined]
        assert ended.is_set()

    def test_an_error_of_the_work_is_the_readers(self) -> None:
        def work(tell: Callable[[int], None]) -> None:
            tell(1)
            raise InputError("expected more")

        reader = steps_of(work, GO_ON())
        assert next(reader) == 1
        with pytest.raises(InputError, match="expected more"):
            next(reader)

    def test_a_session_does_one_thing_at_a_time(self) -> None:
        runs = Runs()
        first, other = runs.begin("a"), runs.begin("b")
        second = runs.begin("a")
        assert first.is_set() and not second.is_set() and not other.is_set()
        runs.stop("a")
        runs.stop("nobody")
        assert second.is_set() and not other.is_set()


class TestDraw:
    def test_labels_in_turn_chosen_and_not_given(self) -> None:
        assert class_labels([SIDES, INKS], [IN_TURN, 2], 3) == [(0, 2), (1, 2), (0, 2)]
        assert class_labels([SIDES, INKS], [NOT_GIVEN, IN_TURN], 4) == [
            (None, 0),
            (None, 1),
            (None, 2),
            (None, 0),
        ]
        assert class_labels([], [], 2) is None

    def test_the_levels_appear_one_by_one_and_end_in_the_pipelines_pictures(
        self, fashion: CDRLPipeline
    ) -> None:
        options = {"num_images": 2, "seed": 3, "guidance_scale": 2.0, "langevin_steps": 2}
        shown = list(draw(fashion, [IN_TURN], GO_ON(), **options))  # type: ignore[arg-type]
        counts = [view.levels.count("<h4>") for view in shown]
        assert counts == sorted(counts) and set(counts) == set(range(7))
        levels = re.findall(r"<h4>level (\d), nats</h4>", shown[-1].levels)
        assert levels == ["5", "4", "3", "2", "1", "0"]
        out = fashion(class_labels=[0, 1], guidance_scale=2.0, seeds=3, langevin_steps=2)
        assert pictures_in(shown[-1].result) == [uri(picture) for picture in out.images]
        captions = re.findall(r"<figcaption>(.*?)</figcaption>", shown[-1].result)
        wanted = [
            f"{name}<br>{energy:.1f} nats"
            for name, energy in zip(["T-shirt/top", "Trouser"], out.energies.tolist(), strict=True)
        ]
        assert captions == wanted
        # The energies of level 0 are those of the result, so guidance is in them.
        last = re.findall(r"<figcaption>(.*?)</figcaption>", shown[-1].levels)[-2:]
        assert last == [f"{energy:.1f}" for energy in out.energies.tolist()]

    def test_the_models_own_kernel_and_steps_are_used(self, model: CDRLModel) -> None:
        sampler = dataclasses.replace(model.sampler, kernel="leimkuhler-matthews", step_scale=2.0)
        pipe = CDRLPipeline(dataclasses.replace(model, sampler=sampler))
        options = {"num_images": 1, "seed": 0, "guidance_scale": 1.0, "langevin_steps": 3}
        *_, last = draw(pipe, [0], GO_ON(), **options)  # type: ignore[arg-type]
        out = pipe(class_labels=[0], seeds=0, langevin_steps=3)
        assert pictures_in(last.result) == [uri(picture) for picture in out.images]

    def test_it_stops_at_the_next_step(self, fashion: CDRLPipeline) -> None:
        stop = GO_ON()
        views = draw(
            fashion, [0], stop, num_images=1, seed=0, guidance_scale=1.0, langevin_steps=30
        )
        next(views)
        stop.set()
        with pytest.raises(Stopped):
            list(views)

    def test_numbers_have_limits(self, fashion: CDRLPipeline) -> None:
        for count, steps in ((9, 5), (4, 31)):
            with pytest.raises(InputError, match="at most"):
                next(
                    draw(fashion, [0], GO_ON(), num_images=count, seed=0, guidance_scale=1.0,
                         langevin_steps=steps)
                )  # fmt: skip


class TestCompose:
    def test_clicks_become_an_expression(self, coloured: CDRLPipeline) -> None:
        text = written(coloured, [["dress", "coat"], ["red"], []], [[], [], ["dark"]])
        assert text == "(dress | coat) & red & ~dark"
        assert written(coloured, [[], [], []], [[], [], []]) == ""

    def test_the_bundled_model_knows_its_held_out_pairs(self, coloured: CDRLPipeline) -> None:
        assert held_out(coloured.model) == list(HELD_OUT)

    def test_odd_entries_of_a_foreign_model_are_left_out(self, coloured: CDRLPipeline) -> None:
        rows: list[object] = [["sneaker", "red"], ["sneaker", "purple"], "red", [1, 2], {}]
        for found, wanted in ((rows, [("sneaker", "red")]), ("red", []), (None, [])):
            model = SimpleNamespace(labels=coloured.model.labels, training={"held_out": found})
            assert held_out(model) == wanted  # type: ignore[arg-type]

    @pytest.mark.parametrize(
        ("text", "wanted"),
        [
            ("sneaker & red", [("sneaker", "red")]),
            ("red & (sneaker | coat)", [("sneaker", "red")]),
            ("sneaker | red", []),  # one of them, so not the pair
            ("sneaker & ~red", []),
            ("sneaker & blue", []),
            ("(sneaker & red) | (coat & yellow)", [("sneaker", "red"), ("coat", "yellow")]),
        ],
    )
    def test_pairs_that_training_never_saw(
        self, coloured: CDRLPipeline, text: str, wanted: list[tuple[str, str]]
    ) -> None:
        from cdrl_infer.conditions.parser import parse

        assert unseen(parse(text, coloured.concept), HELD_OUT) == wanted
        assert ("held out" in note(coloured, text)) == bool(wanted)

    def test_a_wrong_expression_is_one_line(self, coloured: CDRLPipeline) -> None:
        assert "unknown concept &#x27;purple&#x27;" in note(coloured, "purple & red")
        assert 'role="alert"' in note(coloured, "red &")


class TestRepair:
    def test_the_mask_of_a_canvas(self) -> None:
        mask = read_mask("0110" + "0001", 2, 4)
        assert mask.tolist() == [[False, True, True, False], [False, False, False, True]]
        for bits, message in (("0" * 8, "paint on"), ("", "paint on"), ("1" * 7, "load the page")):
            with pytest.raises(InputError, match=message):
                read_mask(bits, 2, 4)

    def test_the_canvas_has_the_size_of_the_picture(self) -> None:
        assert 'width="5" height="3"' in canvas(Image.new("L", (5, 3)))

    def test_known_pixels_stay(self, fashion: CDRLPipeline) -> None:
        picture = fashion(num_images=1, seeds=1, langevin_steps=0).images[0]
        mask = np.zeros((28, 28), bool)
        mask[10:20, 5:25] = True
        bits = "".join("1" if bit else "0" for bit in mask.flatten())
        options = {"num_images": 2, "seed": 0, "langevin_steps": 1}
        shown = list(repair(fashion, picture, bits, [NOT_GIVEN], GO_ON(), **options))
        out = fashion.inpaint(picture, mask, num_images=2, seeds=0, langevin_steps=1)
        assert pictures_in(shown[-1].result) == [uri(filled) for filled in out.images]
        with pytest.raises(InputError, match="draw or upload one"):
            repair(fashion, None, bits, [NOT_GIVEN], GO_ON(), **options)


class TestUploads:
    GREY, COLOUR = ImageShape(1, 28, 28), ImageShape(3, 8, 16)

    def test_another_shape_is_cropped_to_the_middle(self, tmp_path: Path) -> None:
        picture = Image.new("RGB", (60, 20), "black")
        picture.paste("white", (20, 0, 40, 20))
        picture.save(tmp_path / "wide.png")
        found = read_upload(tmp_path / "wide.png", self.GREY)
        assert (found.mode, found.size) == ("L", (28, 28))
        assert np.asarray(found).min() > 200
        assert read_upload(tmp_path / "wide.png", self.COLOUR).size == (16, 8)

    def test_transparent_parts_become_white(self, tmp_path: Path) -> None:
        Image.new("RGBA", (28, 28), (255, 0, 0, 0)).save(tmp_path / "clear.png")
        assert np.asarray(read_upload(tmp_path / "clear.png", self.COLOUR)).min() == 255

    def test_pictures_of_16_bits_are_refused_by_name(self, tmp_path: Path) -> None:
        Image.fromarray(np.full((28, 28), 40_000, np.uint16)).save(tmp_path / "deep.png")
        with pytest.raises(InputError, match=r"^deep.png: expected 8 bits per channel"):
            read_upload(tmp_path / "deep.png", self.GREY)

    def test_a_wrong_file_is_one_line_with_its_name_and_no_folder(self, tmp_path: Path) -> None:
        (tmp_path / "notes.txt").write_text("no picture", encoding="utf-8")
        (tmp_path / "large.png").write_bytes(bytes(MAX_UPLOAD + 1))
        Image.new("L", (40, 40)).save(tmp_path / "good.png")
        names = ("notes.txt", "good.png", "large.png")
        model = SimpleNamespace(image=self.GREY)
        pictures, wrong = read_all([str(tmp_path / n) for n in names], model)  # type: ignore[arg-type]
        assert [name for name, _ in pictures] == ["good.png"]
        assert wrong[0].startswith("notes.txt: expected a picture (PNG,")
        assert wrong[1] == "large.png: expected a file of at most 10 MB"
        assert str(tmp_path) not in " ".join(wrong)
        with pytest.raises(InputError, match="at most 24 pictures at once, got 25"):
            read_all([str(tmp_path / "good.png")] * 25, model)  # type: ignore[arg-type]


class TestOdd:
    @pytest.mark.parametrize(
        ("p_value", "words"),
        [
            (1 / 2501, "odder than all 2,500 ordinary pictures"),
            (2 / 2501, "very odd: 1 in 1,250 ordinary pictures scores as high"),
            (0.025, "odd: 1 in 40 ordinary pictures scores as high"),
            (0.1, "a little unusual: 10 in 100 ordinary pictures score as high"),
            (0.62, "ordinary: 62 in 100 ordinary pictures score as high"),
            (None, "not calibrated: compare the scores of your pictures with each other"),
        ],
    )
    def test_words(self, p_value: float | None, words: str) -> None:
        assert in_words(p_value, 2500) == words

    def test_scores_p_values_and_one_scale(self, fashion: CDRLPipeline) -> None:
        drawn = fashion(class_labels="Coat", seeds=0, langevin_steps=2).images[0]
        noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (28, 28), np.uint8))
        pictures = [("coat.png", drawn), ("<b>noise</b>", noise)]
        *_, last = judge(fashion, pictures, ["notes.txt: no picture"], GO_ON())
        out = fashion.score([drawn, noise], return_map=True)
        assert out.p_values is not None and out.maps is not None
        for score, p_value in zip(out.scores.tolist(), out.p_values.tolist(), strict=True):
            assert f"score {score:.4g}, p = {p_value:.2g}" in last.pictures
        assert f"black 0, white {float(out.maps.max()):.3g}" in last.pictures
        assert "notes.txt: no picture" in last.status and "<b>" not in last.pictures
        assert len(pictures_in(last.histogram)) == 1

    def test_none_and_none_left(self, fashion: CDRLPipeline) -> None:
        with pytest.raises(InputError, match="drop some"):
            next(judge(fashion, [], [], GO_ON()))
        (only,) = judge(fashion, [], ["notes.txt: no picture"], GO_ON())
        assert "notes.txt: no picture" in only.status and not only.pictures

    def test_a_model_that_is_not_calibrated_has_scores_alone(self, pipe: CDRLPipeline) -> None:
        picture = Image.new("L", (pipe.model.image.width, pipe.model.image.height), 99)
        *_, last = judge(pipe, [("grey", picture)], [], GO_ON())
        assert "not calibrated" in last.pictures and "p = " not in last.pictures


class TestPlane:
    def test_densities_are_those_of_the_comparison_with_the_truth(self, plane: Plane) -> None:
        level = plane.pipe.model.schedule.level(1)
        truth = toy.true_masses(level)
        size = toy.FINE // CELLS
        coarse = truth.reshape(CELLS, size, CELLS, size).sum((1, 3))
        assert EXTENT == toy.EXTENT
        density = plane.density(1)
        assert toy.total_variation(density / density.sum(), coarse / coarse.sum()) < 0.06

    def test_chains_walk_from_level_to_level_to_the_samples(self, plane: Plane) -> None:
        waits: list[float] = []
        shown = list(
            plane.walk(GO_ON(), chains=50, seed=0, langevin_steps=3, pause=0.5, sleep=waits.append)
        )
        assert waits == [0.5] * 8 * 4 and len(shown) == 8 * 4 + 1
        told = [re.findall(r"level (\d), (.*?)<", view.status) for view in shown[:4]]
        steps = ["proposal", "step 1 of 3", "step 2 of 3", "step 3 of 3"]
        assert told == [[("7", step)] for step in steps]
        now = [
            re.findall(r'aria-label="chains on the energy of level (\d)"', v.plane) for v in shown
        ]
        assert [level for (level,) in now] == [str(7 - k // 4) for k in range(32)] + ["0"]
        ends: list[torch.Tensor] = []
        plane.pipe(
            num_images=50,
            seeds=0,
            langevin_steps=3,
            output_type="pt",
            callback_on_level_end=lambda end, first: ends.append(end.refined),
        )
        x = ends[-1].reshape(-1, 2)
        dots = re.findall(r'<circle cx="([-\d.]+)" cy="([-\d.]+)"', shown[-1].plane)
        found = torch.tensor([[float(a), float(b)] for a, b in dots])
        wanted = torch.stack([x[:, 0] + EXTENT, EXTENT - x[:, 1]], 1) * CELLS / (2 * EXTENT)
        assert len(found) == 50 and (found - wanted).abs().max() <= 0.0501

    def test_without_steps_and_with_a_stop(self, plane: Plane) -> None:
        options = {"chains": 5, "seed": 0, "pause": 0.0}
        assert len(list(plane.walk(GO_ON(), langevin_steps=0, **options))) == 9  # type: ignore[arg-type]
        stop = GO_ON()
        views = plane.walk(stop, langevin_steps=9, **options)  # type: ignore[arg-type]
        next(views)
        stop.set()
        with pytest.raises(Stopped):
            list(views)

    def test_other_models_are_refused(self, fashion: CDRLPipeline) -> None:
        with pytest.raises(InputError, match=r"images \(1, 1, 2\), got \(1, 28, 28\)"):
            Plane(fashion)


def test_captions_and_problems_are_text_not_html() -> None:
    html = figure(Image.new("L", (2, 2)), "<script>\nline") + problem(InputError("<i>\nx"))
    assert "<script>" not in html and "<i>" not in html
    assert "&lt;script&gt;<br>line" in html and "&lt;i&gt; x" in html


def test_models_are_the_bundled_ones_or_one_and_the_plane() -> None:
    assert tuple(open_models()) == ("fashion-mnist", "cifar10", "coloured-fashion-mnist", "toy-2d")
    assert list(open_models("coloured-fashion-mnist")) == ["coloured-fashion-mnist", "toy-2d"]
    assert list(open_models("toy-2d")) == ["toy-2d"]


def test_a_revision_needs_a_model() -> None:
    result = CliRunner().invoke(main, ["--revision", "v1"])
    assert result.exit_code == 2
    assert "--revision and --variant are for one model: name it with --model" in result.output
