"""BatchNorm of the backbone while it adapts: frozen or trained, decided before the first step and said."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Self

from torch import nn

from tpssl_hf.evaluation.probes import ProbeSplit
from tpssl_hf.models.batchnorm import batchnorm_layers
from tpssl_hf.tasks.pretrain.crops import Crops
from tpssl_hf.tasks.pretrain.helped import in_points
from tpssl_hf.tasks.pretrain.selection import BN_ONLY, START, Right, query_difference
from tpssl_hf.tasks.pretrain.untouched import Start

FILE = "batchnorm.json"  # in a run's folder: a resumed run keeps its choice
RECOGNIZED = 0.1  # least mean reciprocal rank of statistics that are taken without labels to say so


@dataclass(frozen=True)
class BatchNormChoice:
    """What was chosen.

    Attributes:
        mode: ``frozen``: the running statistics of the weights stay; ``train``: those of the images are learned;
            ``none``: the backbone has no BatchNorm layer.
        why: the reason, in a few words.
        answers: what labels said of Φ_pre (``start``) and of Φ_pre with re-estimated statistics (``bn_only``), as far
            as they were asked, by the images that choose what is saved.
    """

    mode: Literal["frozen", "train", "none"]
    why: str
    answers: Mapping[str, Right] = field(default_factory=dict)

    def sentence(self) -> str:
        """Say what was chosen, or nothing where there was nothing to choose."""
        if self.mode == "none":
            return ""
        return f"BatchNorm of the backbone: {self.mode} ({self.why}); --backbone_batchnorm decides otherwise"

    def values(self) -> dict[str, Any]:
        """Return what :meth:`restored` takes, as JSON types."""
        answers = {name: "".join(map(str, right)) for name, right in self.answers.items()}
        return {"mode": self.mode, "why": self.why, "answers": answers}

    @classmethod
    def restored(cls, values: Mapping[str, Any]) -> Self:
        """Build it from what :meth:`values` returned."""
        answers = {name: [int(digit) for digit in digits] for name, digits in values["answers"].items()}
        return cls(values["mode"], values["why"], answers)


def choose_batchnorm(
    asked: Literal["auto", "frozen", "train"],
    backbone: nn.Module,
    kind: str,
    start: Start | None,
    split: ProbeSplit | None,
) -> BatchNormChoice:
    """Decide between frozen and trained BatchNorm.

    Pretrained weights are best left with the statistics they were trained with, unless those of the images serve
    better; and re-estimating them, with nothing else, shows that. With labels, images that they choose by are asked
    about with either; ``train`` must be better by an interval above 0. Without labels, images are to be known again in
    another crop (:func:`tpssl_hf.evaluation.agreement.reciprocal_ranks`), and ``train`` must do that better likewise.

    Args:
        asked: the key ``backbone_batchnorm``.
        backbone: Φ_pre.
        kind: of its weights; random ones know no statistics.
        start: Φ_pre and the images to measure on; None when streaming.
        split: labels to measure by, or None.
    """
    if not batchnorm_layers(backbone):
        return BatchNormChoice("none", "there is none")
    if asked != "auto":
        return BatchNormChoice(asked, "as asked")
    if kind == "random":
        return BatchNormChoice("train", "random weights have no statistics")
    if start is None:
        return BatchNormChoice("frozen", "streamed images are not measured on, and pretrained statistics rarely lose")
    if split is not None:
        answers = {START: start.kept.answers(split), BN_ONLY: start.bn_only.answers(split)}
        gain = query_difference(answers[START], answers[BN_ONLY])
        why = f"re-estimated statistics alone: {in_points(gain)} on {len(split.queries)} images"
        return BatchNormChoice("train" if gain["low"] > 0 else "frozen", why, answers)
    return by_crops(start.kept.crops(), start.bn_only.crops())


def by_crops(kept: Crops, new: Crops) -> BatchNormChoice:
    """Decide without labels: whose features know images again in another crop, those of Φ_pre or ``new`` ones."""
    why = (
        f"no labels; images are known again in another crop with a mean reciprocal rank of {kept.mean_rank:.3f}, with "
        f"re-estimated statistics {new.mean_rank:.3f}"
    )
    better = new.better(kept)["low"] > 0 and new.mean_rank > RECOGNIZED
    return BatchNormChoice("train" if better else "frozen", why)
