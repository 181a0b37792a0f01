"""What is known of Φ_pre before the first step, with its own BatchNorm statistics and with those of the images."""

import numpy as np
from torch import nn

from tpssl_hf.evaluation.probes import ProbeSplit, probe
from tpssl_hf.tasks.pretrain.crops import Crops
from tpssl_hf.tasks.pretrain.selection import Right, answers_of
from tpssl_hf.tasks.pretrain.shown_images import ShownImages


class Untouched:
    """A network while it stays as it is, which sees an image once however often it is asked about it.

    Args:
        network: images (B, 3, H, W) to features (B, D).
        images: what it is asked about.
    """

    def __init__(self, network: nn.Module, images: ShownImages) -> None:
        self.network, self.images = network, images
        self._features: dict[int, np.ndarray] = {}
        self._crops: Crops | None = None

    def features(self, indices: np.ndarray) -> np.ndarray:
        """Return features (N, D) float32 of undistorted images."""
        asked: list[int] = indices.tolist()
        new = [index for index in dict.fromkeys(asked) if index not in self._features]
        if new:
            self._features |= zip(new, self.images.features(self.network, np.array(new)), strict=True)
        return np.stack([self._features[index] for index in asked])

    def answers(self, split: ProbeSplit) -> Right:
        """Return what labels say, see :func:`answers_of`."""
        return answers_of(self.features, split)

    def probed(self, split: ProbeSplit) -> dict[str, list[int]]:
        """Return what probes say, see :func:`probe`."""
        return probe(self.features, split)

    def crops(self) -> Crops:
        """Return how it sees two crops of some images, always the same ones."""
        if self._crops is None:
            self._crops = self.images.crops(self.network)
        return self._crops


class Start:
    """Φ_pre as it came, and with re-estimated BatchNorm statistics; made and asked only when needed.

    Attributes:
        images: what both are asked about.
        backbone: Φ_pre, before it is trained.
    """

    def __init__(self, backbone: nn.Module, images: ShownImages) -> None:
        self.images, self.backbone = images, backbone
        self._kept: Untouched | None = None
        self._bn_only: Untouched | None = None

    @property
    def kept(self) -> Untouched:
        """Φ_pre as it came."""
        if self._kept is None:
            self._kept = Untouched(self.backbone, self.images)
        return self._kept

    @property
    def bn_only(self) -> Untouched:
        """A copy that has the statistics of the images, and nothing else that is new."""
        if self._bn_only is None:
            self._bn_only = Untouched(self.images.reestimated(self.backbone), self.images)
        return self._bn_only

    def forget(self) -> None:
        """Drop all that is known, which training makes untrue."""
        self._kept = self._bn_only = None
