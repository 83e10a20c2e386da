"""The share of samples in which a classifier recognises the asked labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cdrl_infer.model import Attribute
from cdrl_infer.processes import Arrays, Processes
from cdrl_train.evaluation.classifier import Classifier
from cdrl_train.evaluation.report import BINOMIAL, Result, binomial_error
from cdrl_train.evaluation.sampling import RealImages

Labels = NDArray[np.int64]  # (N, A)


@dataclass(frozen=True)
class Accuracy:
    """The accuracy on the samples, and on real images to compare with.

    Args:
        classifier: predicts the labels.
        file: the name of the classifier's file, for the report.
        labels: the attributes of the model.
        asked: the labels of the samples of a repeat.
        reference: real images with labels.
        batch_size: number of images at once.
    """

    classifier: Classifier
    file: str
    labels: Sequence[Attribute]
    asked: Labels
    reference: RealImages
    batch_size: int

    def results(self, processes: Processes, shown: Sequence[Labels]) -> list[Result]:
        """The accuracy for all samples, and for each class.

        Args:
            processes: the processes that share the work.
            shown: the labels that the classifier predicts for the samples of each repeat.
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
        """The true labels of the real images, and the labels that the classifier predicts."""
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
        """The file and the digest of the classifier, for readers."""
        return {"classifier": f"{self.file}, {self.classifier.digest}"}

    def settings(self) -> dict[str, Any]:
        """The digest of the classifier, for programs."""
        return {"classifier": self.classifier.digest}
