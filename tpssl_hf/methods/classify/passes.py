"""The forward passes of learners that weigh their unlabeled images by a weak view of them."""

import torch
from torch import Tensor, nn

from tpssl_hf.augment.color import host_can_look
from tpssl_hf.methods.base import Batch
from tpssl_hf.models.batchnorm import batchnorm_layers
from tpssl_hf.models.classifier import split_logits

GROUP = 8  # images


class Passes:
    """What a student says of the images of one step, without computing what cannot reach its loss.

    Where BatchNorm takes the statistics of the batch, all images go through the network together and share them, as in
    the code of Sohn et al. (2020). Otherwise the logits of an image do not depend on the other images. Then weak views
    need no gradient; and where the host may look at values, which is on a CPU, strong views of weight 0 are left out,
    but for those that fill a group of 8. Loss and gradient are the same.

    Attributes:
        weak: (U, K) float32 logits of the weak views of the unlabeled images, without a gradient.
    """

    def __init__(self, student: nn.Module, batch: Batch) -> None:
        self._student = student
        self._labeled, self._unlabeled = batch["labeled"]["weak"], batch["unlabeled"]
        self._joint: tuple[Tensor, Tensor] | None = None
        weak, strong = self._unlabeled["weak"], self._unlabeled["strong"]
        if any(layer.training for layer in batchnorm_layers(student)):
            logits, logits_weak, logits_strong = split_logits(student, self._labeled, weak, strong)
            self.weak, self._joint = logits_weak.detach(), (logits, logits_strong)
        else:
            with torch.no_grad():
                self.weak = student(weak).float()

    def learn(self, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits of the labeled (B, K) and of the strong views (U, K), float32, with gradient.

        Args:
            weights: (U,) of the unlabeled images in the loss. Logits of weight 0 mean nothing; those of an image whose
                weak view gave something that is not finite are NaN, so that the loss is as well.
        """
        if self._joint is not None:
            return self._joint
        strong = self._unlabeled["strong"]
        finite = self.weak.isfinite().all(dim=1)
        if not host_can_look(weights) or torch.compiler.is_compiling():
            logits, all_strong = split_logits(self._student, self._labeled, strong)
            return logits, all_strong.masked_fill(~finite[:, None], torch.nan)
        used = _in_groups(weights)
        logits, some = split_logits(self._student, self._labeled, strong[used])
        return logits, torch.zeros_like(self.weak).index_copy(0, used, some).masked_fill(~finite[:, None], torch.nan)


def _in_groups(weights: Tensor) -> Tensor:
    """Return which images have a weight that is not 0, and as many others as fill the last group.

    oneDNN makes its kernels anew for each number of images it has not met lately: passes took 1.4 times as long.
    """
    filled = -(-int(weights.count_nonzero()) // GROUP) * GROUP
    return weights.argsort(descending=True, stable=True)[:filled].sort().values
