r"""Label spreading: labels flow between nearest neighbors of frozen features (Zhou et al., 2004).

"Learning with local and global consistency", NIPS 16. A graph joins each image with its nearest ones by cosine. With
S the normalized adjacency of that graph and Y (N, K) the labels as one-hot rows, 0 where unknown, §2 iterates

    F ← α S F + (1 − α) Y.

An image is given the class of its largest entry, with the share of that entry in its row as weight. A linear
classifier is then fitted to these labels on the same features (ours), so that it is deployed like any other, and knows
new images. There is no step of training: it takes seconds, and is a baseline that no learner should lose to.

Deviations: neighbors instead of a Gaussian of all distances, so that memory grows with N and not N²; few iterations;
given labels stay as they are. scikit-learn computes it.
"""

import warnings
from dataclasses import dataclass

import numpy as np
from scipy.sparse import spmatrix
from sklearn.exceptions import ConvergenceWarning
from sklearn.neighbors import kneighbors_graph
from sklearn.semi_supervised import LabelSpreading
from torch import Tensor, nn

from tpssl_hf.augment.pretrain_views import ViewSettings, eval_view
from tpssl_hf.config.allowed import BETWEEN_0_AND_1, FROM_1
from tpssl_hf.config.parser import key
from tpssl_hf.data.image_batch import ImageBatch
from tpssl_hf.methods.base import Batch, LearnerSpec, Losses, Method, Views

MOST_IMAGES = 10_000  # in the graph, whose time grows with their square
ITERATIONS = 50
UNKNOWN = -1


@dataclass(frozen=True)
class LabelSpreadingConfig:
    """Label spreading (Zhou et al., 2004)."""

    neighbors: int = key(10, "Nearest neighbors that an image is joined with; our choice.", within=FROM_1)
    alpha: float = key(
        0.2,
        "Share that an image takes from its neighbors, α of Zhou et al. (2004); our choice.",
        within=BETWEEN_0_AND_1,
    )


class NeighborGraph:
    """Nearest neighbors by cosine among features, along which labels can be spread several times.

    Args:
        features: (N, D); of more than 10,000 a fixed random draw takes part.
        config: how many neighbors, and how much they count.
    """

    def __init__(self, features: np.ndarray, config: LabelSpreadingConfig) -> None:
        self.count, self.alpha = len(features), config.alpha
        self.rows = np.sort(np.random.default_rng(0).permutation(self.count)[:MOST_IMAGES])
        chosen = features[self.rows]
        unit = chosen / np.maximum(np.linalg.norm(chosen, axis=1, keepdims=True), 1e-12)
        neighbors = min(config.neighbors, len(unit))
        self.graph: spmatrix = kneighbors_graph(unit, neighbors, mode="connectivity", include_self=True)

    def spread(self, known: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Spread labels to the images without one.

        Args:
            known: (N,) int64, −1 where there is no label; at least one has one.

        Returns:
            Labels (N,) int64 and weights (N,) in [0, 1]: 1 for those that were known, 0 where none has arrived.
        """
        labels, weights = known.copy(), (known != UNKNOWN).astype(np.float64)
        own = known[self.rows]
        if (own == UNKNOWN).any() and (own != UNKNOWN).any():
            model = LabelSpreading(kernel=lambda rows, _: self.graph, alpha=self.alpha, max_iter=ITERATIONS)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ConvergenceWarning)  # few iterations are meant
                model.fit(self.rows[:, None], own)
            open_places = own == UNKNOWN
            labels[self.rows[open_places]] = model.transduction_[open_places]
            weights[self.rows[open_places]] = model.label_distributions_.max(axis=1)[open_places]
        labels[labels == UNKNOWN] = known.max()  # any class does where the weight is 0
        return labels, weights


class FittedClassifier(Method):
    """A classifier whose head is fitted before the first step, so that there is none."""

    def __init__(self, classifier: nn.Module, config: LabelSpreadingConfig, unlabeled_count: int) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, batch: Batch, progress: float) -> Losses:
        """Not called: there is no step."""
        raise NotImplementedError("label spreading makes no step")

    @property
    def deployed(self) -> nn.Module:
        """The classifier."""
        return self.classifier


def fit_labels(features: np.ndarray, known: np.ndarray, config: LabelSpreadingConfig) -> tuple[np.ndarray, np.ndarray]:
    """Return labels and weights for ``features`` (N, D), of which ``known`` (N,) holds labels or −1."""
    return NeighborGraph(features, config).spread(known)


def views(settings: ViewSettings, config: LabelSpreadingConfig) -> Views:
    """Images as they are, labeled and unlabeled."""

    def undistorted(images: ImageBatch) -> dict[str, Tensor]:
        return {"whole": eval_view(images, settings)}

    return {"labeled": undistorted, "unlabeled": undistorted}


SPEC = LearnerSpec(config=LabelSpreadingConfig, build=FittedClassifier, views=views, fit_labels=fit_labels)
