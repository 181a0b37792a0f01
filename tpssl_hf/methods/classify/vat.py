"""Virtual adversarial training with entropy minimization (Miyato et al., 2018, arXiv 1704.03976).

Deviations, both because an image of 224 pixels is not one of 32: the radius is given per pixel, so that it means the
same at every size, and the probe of the power iteration is a hundredth of the radius, because the usual 1e-6 is lost
when it is added to an image in float32. Weights and ramp are those of FixMatch's authors.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tpssl_hf.augment.classify_views import weak_view
from tpssl_hf.augment.pretrain_views import ViewSettings
from tpssl_hf.config.allowed import ABOVE_0, BELOW_1, SHARE
from tpssl_hf.config.parser import key
from tpssl_hf.losses.semi_supervised import linear_ramp, masked_divergence, mean_entropy
from tpssl_hf.methods.base import Batch, LearnerSpec, Losses, Method, Views
from tpssl_hf.methods.classify.streams import UNLABELED_WEAK, labeled_weak
from tpssl_hf.models.batchnorm import keep_statistics
from tpssl_hf.models.ema import EMATeacher


@dataclass(frozen=True)
class VATConfig:
    """VAT; defaults are those of FixMatch's code (Sohn et al., 2020), the radius carried over to larger images."""

    ema_momentum: float = key(
        0.999, "EMA momentum of the evaluated network (Sohn et al., 2020, official code).", within=BELOW_1
    )
    unlabeled_weight: float = key(0.3, "Weight of the divergence after its ramp (Sohn et al., 2020, likewise).")
    entropy_weight: float = key(0.06, "Weight of the mean entropy, from the start (Sohn et al., 2020, likewise).")
    ramp_end: float = key(
        0.4, "Part of the run over which unlabeled_weight takes effect (Sohn et al., 2020, likewise).", within=SHARE
    )
    radius: float = key(
        0.2397,
        "Root mean square of the perturbation over normalized pixels: 93 / sqrt(3 * 224 * 224), which is the norm 6 "
        "for 32 pixels in [-1, 1] of Sohn et al., 2020.",
        within=ABOVE_0,
    )
    probe: float = key(
        0.01, "Length of the power iteration's probe, relative to the radius (our choice).", within=ABOVE_0
    )


class VAT(Method):
    """Predictions withstand the small perturbation that changes them most, found by one power iteration."""

    def __init__(self, classifier: nn.Module, config: VATConfig, unlabeled_count: int) -> None:
        super().__init__()
        self.config = config
        self.student = classifier
        self.teacher = EMATeacher(classifier, config.ema_momentum)

    def forward(self, batch: Batch, progress: float) -> Losses:
        """Return ``loss`` for ``labeled``: ``weak``, ``labels``; and ``unlabeled``: ``weak`` (U, 3, H, W).

        Only the labeled images move BatchNorm statistics. The others are seen in float32: the perturbations are
        too small for less.
        """
        labeled, images = batch["labeled"], batch["unlabeled"]["weak"].float()
        loss_labeled = F.cross_entropy(self.student(labeled["weak"]).float(), labeled["labels"])
        with keep_statistics(self.student), torch.autocast(images.device.type, enabled=False):
            logits = self.student(images)
            targets = logits.detach().softmax(dim=1)
            loss_unlabeled = self.divergence(targets, images + self.perturbation(images, targets))
        entropy = mean_entropy(logits)
        weight = self.config.unlabeled_weight * linear_ramp(progress, self.config.ramp_end)
        return {
            "loss": loss_labeled + weight * loss_unlabeled + self.config.entropy_weight * entropy,
            "loss_labeled": loss_labeled.detach(),
            "loss_unlabeled": loss_unlabeled.detach(),
            "entropy": entropy.detach(),
        }

    def perturbation(self, images: Tensor, targets: Tensor) -> Tensor:
        """Return the r (U, 3, H, W) of norm ``radius``·√(3·H·W) per image that most changes the predictions.

        Its direction is the gradient of the divergence at a short random step (Miyato et al., 2018, §3.3).

        Args:
            images: (U, 3, H, W) float32.
            targets: (U, K), their predicted probabilities, without a gradient.
        """
        norm = self.config.radius * math.sqrt(images[0].numel())
        direction = _unit(torch.randn_like(images)).requires_grad_()
        divergence = self.divergence(targets, images + self.config.probe * norm * direction)
        # not backward(): the parameters' gradients must stay those of the loss
        (gradient,) = torch.autograd.grad(divergence, direction)
        return norm * _unit(gradient)

    def divergence(self, targets: Tensor, images: Tensor) -> Tensor:
        """Return the mean KL(targets ‖ prediction) for probabilities (U, K) and ``images`` (U, 3, H, W)."""
        return masked_divergence(targets, self.student(images), targets.new_ones(len(targets)))

    def after_step(self, progress: float) -> None:
        """Move the evaluated average toward the student."""
        self.teacher.update(self.student)

    @property
    def deployed(self) -> nn.Module:
        """The average of the student."""
        return self.teacher.network


def _unit(vectors: Tensor) -> Tensor:
    """Scale each of ``vectors`` (U, ...) to length 1; one of zeros stays. No square underflows on the way."""
    rows = vectors.flatten(1)
    rows = rows / rows.abs().amax(dim=1, keepdim=True).clamp_min(torch.finfo(rows.dtype).tiny)
    return F.normalize(rows, dim=1).view_as(vectors)


def views(settings: ViewSettings, config: VATConfig) -> Views:
    """One weak view of the labeled and of the unlabeled images."""
    return {
        **labeled_weak(settings),
        "unlabeled": lambda images: {"weak": weak_view(images, settings, UNLABELED_WEAK)},
    }


SPEC = LearnerSpec(config=VATConfig, build=VAT, views=views, defaults={"unlabeled_ratio": 1})
