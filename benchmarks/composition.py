"""How often samples show the composed concepts, as judged by a classifier.

``python benchmarks/composition.py --data coloured:fashion_mnist.npz``; see benchmarks/README.md.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import click
import torch
from classifier import Recipe, load_or_train
from options import draws, writes
from report import check_target, per_cent, table, write_json
from subject import MADE_WITH, Steps, Subject, steps_name
from torch import Tensor
from tqdm import tqdm

from cdrl_infer.cli import command
from cdrl_infer.conditions.expressions import And, Concept, Expression, Or, Weighted
from cdrl_infer.drawing import CDRLPipelineOutput
from cdrl_infer.errors import InputError, listing
from cdrl_infer.pipeline import CDRLPipeline
from cdrl_train.data.coloured import ATTRIBUTES, COLOURS, GARMENTS, HELD_OUT, render
from cdrl_train.data.image_set import ImageSet
from cdrl_train.data.sources import load_images
from cdrl_train.evaluation.classifier import Classifier
from cdrl_train.evaluation.sampling import pixels

JUDGE_SEED = 2  # seed of the judge's training images; they have all pairs, the model's do not
COLUMNS = ("composed", "initializer alone", "one attribute", "joint label")
Draw = Callable[[Expression, range], CDRLPipelineOutput]


def holds(expression: Expression, labels: Tensor) -> Tensor:
    """(N,) bool, whether the expression is true for labels (N, A), indices from 0."""
    if isinstance(expression, Concept):
        return labels[:, expression.attribute] == expression.label - 1
    if isinstance(expression, Weighted):
        inner = holds(expression.inner, labels)
        return ~inner if expression.weight < 0 else inner
    if not isinstance(expression, (And, Or)):
        raise TypeError(type(expression))
    parts = torch.stack([holds(part, labels) for part in expression.parts])
    return parts.all(0) if isinstance(expression, And) else parts.any(0)


class Question(NamedTuple):
    """Some expressions of one kind; the images take turns with them."""

    name: str
    expressions: tuple[Expression, ...]
    joint: bool = False  # whether the labels of each can also be asked for together


def questions(concept: Callable[[str], Concept]) -> list[Question]:
    """The questions of the benchmark.

    Args:
        concept: finds a concept by its name.
    """
    pairs = list(itertools.product(GARMENTS.values, COLOURS.values))
    seen = [pair for pair in pairs if pair not in HELD_OUT]

    def both(names: tuple[str, ...]) -> Expression:
        return And(tuple(map(concept, names)))

    grounds = itertools.cycle(ATTRIBUTES[2].values)
    colours = list(map(concept, COLOURS.values))
    garments = list(map(concept, GARMENTS.values))
    return [
        Question("garment & colour, seen", tuple(map(both, seen)), True),
        Question("garment & colour, held out", tuple(map(both, HELD_OUT)), True),
        Question(
            "garment & colour & background, seen",
            tuple(both((*pair, next(grounds))) for pair in seen),
            True,
        ),
        Question(
            "garment & colour & background, held out",
            tuple(both((*pair, next(grounds))) for pair in HELD_OUT),
            True,
        ),
        Question("colour | colour", tuple(a | b for a, b in itertools.combinations(colours, 2))),
        Question(
            "garment | garment",
            tuple(a | b for a, b in zip(garments, garments[5:] + garments[:5], strict=True)),
        ),
        Question(
            "colour & (garment | garment)",
            tuple(
                colours[k % len(colours)] & (a | garments[(k + 5) % len(garments)])
                for k, a in enumerate(garments)
            ),
        ),
        Question("~colour", tuple(~c for c in colours)),
        Question("~garment", tuple(~g for g in garments)),
        Question(
            "garment & ~colour",
            tuple(concept(g) & ~concept(c) for g, c in seen[:: max(1, len(seen) // 10)]),
        ),
    ]


@dataclass(frozen=True)
class Examiner:
    """Draws images for expressions; the judge then labels them."""

    pipe: CDRLPipeline
    judge: Classifier
    samples: int
    batch_size: int
    restarts: int
    guidance_scale: float

    def shares(self, question: Question, draw: Draw) -> tuple[float, float | None]:
        """The share of samples for which the expression is true, and the share of the first alternative.

        The second share is among samples for which exactly one of two alternatives is true; None if there
        are no such samples.
        """
        true, first, counted = 0, 0, 0
        for k, expression in enumerate(question.expressions):
            seeds = range(k, self.samples, len(question.expressions))
            if not seeds:
                continue
            output = draw(expression, seeds)
            labels = torch.from_numpy(self.judge(pixels(output)))
            true += int(holds(expression, labels).sum())
            alternatives = alternatives_of(expression)
            if alternatives:
                a, b = (holds(part, labels) for part in alternatives)
                first += int((a & ~b).sum())
                counted += int((a ^ b).sum())
        return true / self.samples, first / counted if counted else None

    @property
    def _options(self) -> dict[str, Any]:
        return {
            "restarts": self.restarts,
            "guidance_scale": self.guidance_scale,
            "batch_size": self.batch_size,
            "output_type": "pt",
            "progress": False,
        }

    def composed(self, steps: Steps) -> Draw:
        """Images from `CDRLPipeline.compose`."""
        return lambda expression, seeds: self.pipe.compose(
            expression, seeds=seeds, langevin_steps=steps, **self._options
        )

    def labelled(self, steps: Steps, concepts: int | None) -> Draw:
        """Images from labels: the expression's first concepts, or all concepts for None."""

        def draw(expression: Expression, seeds: range) -> CDRLPipelineOutput:
            labels: list[int | None] = [None] * len(self.pipe.model.labels)
            for asked in expression.concepts[:concepts]:
                labels[asked.attribute] = asked.label - 1
            return self.pipe(
                class_labels=[labels] * len(seeds),
                seeds=seeds,
                langevin_steps=steps,
                **self._options,
            )

        return draw


def alternatives_of(expression: Expression) -> tuple[Expression, Expression] | None:
    """The two sides of the OR in an expression with one OR."""
    parts = expression.parts if isinstance(expression, And) else (expression,)
    found = [part for part in parts if isinstance(part, Or)]
    if len(found) != 1 or len(found[0].parts) != 2:
        return None
    one, other = found[0].parts
    return one, other


def chance(question: Question, attributes: Sequence[int]) -> float:
    """The share of all combinations of values for which the expression is true."""
    combinations = torch.cartesian_prod(*(torch.arange(n) for n in attributes))
    each = [float(holds(e, combinations).double().mean()) for e in question.expressions]
    return sum(each) / len(each)


@click.command("composition.py", cls=command.OneLineErrors, context_settings={"show_default": True})
@click.option(
    "--model",
    metavar="NAME|FOLDER",
    default="coloured-fashion-mnist",
    help="Bundled model or folder.",
)
@click.option("--data", required=True, help="coloured: and Fashion-MNIST (.npz or torchvision:…).")
@click.option("--samples", type=click.IntRange(1), default=300, help="Of each kind of expression.")
@click.option("--langevin-steps", default="model", metavar="K|K,…,K|model")
@click.option("--restarts", type=click.IntRange(0), default=1, help="Restarts of each transition.")
@click.option("--guidance-scale", type=click.FloatRange(0, min_open=True), default=1.0)
@draws("Folder for the judge.")
@writes("composition.json")
def main(out: Path, **options: Any) -> None:
    """Share of samples of which an expression of concepts is true."""
    check_target("--out", out)
    text, results = evaluate(**options)
    click.echo(text)
    write_json(out, results)


def evaluate(
    model: str,
    data: str,
    samples: int,
    langevin_steps: str,
    restarts: int,
    guidance_scale: float,
    batch_size: int,
    device: str,
    cache: Path,
    recipe: Recipe = Recipe(),  # noqa: B008 - a frozen dataclass
) -> tuple[str, dict[str, Any]]:
    """The text that the command prints, and the results that it writes."""
    if not data.startswith("coloured:"):
        raise InputError(f"expected --data coloured:SOURCE, got {data!r}")
    subject = Subject.load(model, data, device)
    pipe, test, steps = subject.pipe, subject.test, subject.steps(langevin_steps)
    renders: ImageSet = render(load_images(data.removeprefix("coloured:"), "train"), JUDGE_SEED)
    judge, real = load_or_train(cache, renders, test, recipe, progress=True)
    examiner = Examiner(pipe, judge, samples, batch_size, restarts, guidance_scale)
    found: dict[str, dict[str, Any]] = {}
    for question in tqdm(questions(pipe.concept), desc="expressions", unit="kind"):
        true, first = examiner.shares(question, examiner.composed(steps))
        row: dict[str, Any] = {"composed": true, "first": first}
        row["initializer alone"], _ = examiner.shares(question, examiner.composed(0))
        if question.joint:
            row["one attribute"], _ = examiner.shares(question, examiner.labelled(steps, 1))
            row["joint label"], _ = examiner.shares(question, examiner.labelled(steps, None))
        row["chance"] = chance(question, test.num_classes)
        row["expressions"] = [str(e) for e in question.expressions]
        found[question.name] = row
    text = "\n".join(
        [
            f"{subject.title}, {steps_name(steps)}, R = {restarts}, guidance scale "
            f"{guidance_scale:g}; {MADE_WITH}.",
            "",
            f"Share of {samples} samples of which the expression is true, in per cent ± binomial "
            f"standard error, judged by a classifier trained on {len(renders)} real renders of all "
            f"combinations. Of real test renders it knows all of {listing(a.name for a in ATTRIBUTES)} "
            f"in {per_cent(real, len(test))}.",
            "",
            _table(found, samples),
        ]
    )
    facts = subject.facts(steps=steps_name(steps), restarts=restarts, guidance_scale=guidance_scale)
    return text, {**facts, "samples": samples, "judge": real, "questions": found}


def _table(found: dict[str, dict[str, Any]], samples: int) -> str:
    body = [
        [
            name,
            *(per_cent(row[key], samples) if key in row else "" for key in COLUMNS),
            f"{100 * row['chance']:.1f}",
            "" if row["first"] is None else f"{100 * row['first']:.0f}",
        ]
        for name, row in found.items()
    ]
    return table(["expression", *COLUMNS, "chance", "first of two"], body)


if __name__ == "__main__":
    main()
