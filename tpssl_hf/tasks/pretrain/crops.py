"""What crops of the images say of a backbone, where there are no labels to ask."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from tpssl_hf.evaluation.agreement import paired_difference, reciprocal_ranks
from tpssl_hf.evaluation.feature_metrics import effective_rank

LEAST_DIRECTIONS = 0.8  # of the start's that a backbone must keep


@dataclass(frozen=True)
class Crops:
    """How a backbone sees two crops of each of some images.

    Attributes:
        ranks: how well each image is known again, see :func:`tpssl_hf.evaluation.agreement.reciprocal_ranks`.
        directions: effective rank of the features, how many directions they use.
    """

    ranks: Sequence[float]
    directions: float

    @classmethod
    def of(cls, one: np.ndarray, other: np.ndarray) -> Self:
        """Look at features (N, D) of one crop of each image and of another."""
        return cls(reciprocal_ranks(one, other).tolist(), effective_rank(one))

    @property
    def mean_rank(self) -> float:
        """Mean reciprocal rank, in (0, 1]."""
        return float(np.mean(self.ranks))

    def better(self, other: "Crops") -> dict[str, float]:
        """Return by how much images are better known again than by ``other``, with an interval."""
        return paired_difference(np.array(other.ranks), np.array(self.ranks))

    def is_sound(self, start: "Crops") -> bool:
        """Whether images are known again no worse than by Φ_pre, by features of nearly as many directions.

        It tells nothing of how much better a backbone is, because training asks for the same; but where training
        destroyed what the weights knew, one of the two fell (docs/evidence.md).
        """
        return self.better(start)["high"] >= 0 and self.directions >= LEAST_DIRECTIONS * start.directions

    def values(self) -> dict[str, Any]:
        """Return what :meth:`restored` takes, as JSON types."""
        return {"ranks": list(self.ranks), "directions": self.directions}

    @classmethod
    def restored(cls, values: Mapping[str, Any] | None) -> Self | None:
        """Build it from what :meth:`values` returned, if anything."""
        return None if values is None else cls(values["ranks"], values["directions"])
