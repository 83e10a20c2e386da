"""How many samples a classifier recognises as what was asked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cdrl_infer.model import Attribute
from cdrl_train.evaluation.classifier import Classifier
from cdrl_train.evaluation.report import BINOMIAL, Result, binomial_error
from cdrl_train.evaluation.sampling import RealImages
from cdrl_train.evaluation.together import Arrays, Processes

Labels = NDArray[np.int64]  # (N, A)


@dataclass(frozen=True)
class Accuracy:
    """Shares of the samples, and of real images beside them.

    Args:
        classifier: judges them.
        file: its name, for the report.
        labels: the model's.
        asked: the labels that the samples of a repeat were drawn for.
        reference: real images with labels.
        batch_size: images at a time.
    """

    classifier: Classifier
    file: str
    labels: Sequence[Attribute]
    asked: Labels
    reference: RealImages
    batch_size: int

    def results(self, processes: Processes, shown: Sequence[Labels]) -> list[Result]:
        """Of all samples and of each class.

        Args:
            processes: share the work.
            shown: what the classifier sees in the samples of each repeat.
        """
        truth, seen = self._real(processes)
        rights = [(one == self.asked).all(1) for one in shown]
        results = [self._result("accuracy, %", rights, (seen == truth).all(1), in_card=True)]
        for j, attribute in enumerate(self.labels):
            for k, value in enumerate(attribute.values):
                mine, theirs = self.asked[:, j] == k, truth[:, j] == k
                if mine.any():
                    parts = [one[mine, j] == k for one in shown]
                    name = f"  {attribute.name} {value}"
                    results.append(self._result(name, parts, seen[theirs, j] == k, in_card=False))
        return results

    def _real(self, processes: Processes) -> tuple[Labels, Labels]:
        """The true labels of the real images, and what the classifier sees in them."""
        images, labels = self.reference.images(0), self.reference.data.labels
        assert labels is not None  # checked before any work

        def look(start: int, stop: int) -> Arrays:
            return {"shown": self.classifier(images[start:stop])}

        title = "the classifier on real images"
        seen = processes.each_batch(len(images), self.batch_size, look, title)["shown"]
        return labels[self.reference.index(0)].numpy(), seen.astype(np.int64)

    def _result(
        self,
        name: str,
        rights: Sequence[NDArray[np.bool_]],
        floor: NDArray[np.bool_],
        in_card: bool,
    ) -> Result:
        n, right = sum(map(len, rights)), int(sum(one.sum() for one in rights))
        return Result(
            "class-accuracy",
            name,
            tuple(100 * float(np.mean(one)) for one in rights),
            100 * binomial_error(right, n),
            BINOMIAL,
            floor=(100 * float(np.mean(floor)),) if len(floor) else (),
            n=n,
            by=f"classifier {self.classifier.digest}",
            depends_on=("samples", "reference", "classifier"),
            floor_name=f"real images ({len(floor):,})" if len(floor) else "",
            in_card=in_card,
        )

    def conditions(self) -> dict[str, str]:
        """The classifier."""
        return {"classifier": f"{self.file}, {self.classifier.digest}"}

    def settings(self) -> dict[str, Any]:
        """The same for programs."""
        return {"classifier": self.classifier.digest}
