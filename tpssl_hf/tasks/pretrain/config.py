"""Configuration of target pretraining."""

from dataclasses import dataclass
from typing import Literal

from tpssl_hf.config.parser import key


@dataclass
class PretrainConfig:
    """Target pretraining."""

    method: str = key("byol", "How to adapt: byol, moco, simclr (whole images), pixpro, densecl (feature maps).")
    l2_weight: float | None = key(
        None, "λ of the pull toward Φ_pre (Eq. 3); 1e-2 when not given, 0 from random weights."
    )
    l2_mode: Literal["loss", "decoupled"] = key(
        "loss", "The pull in the loss (Eq. 3), or as a step beside the optimizer's (ablation)."
    )


@dataclass
class HealthConfig:
    """Health and length of a run."""

    health_every: float = key(1.0, "Epochs between checks of the features' health; 0 never checks.")
    on_collapse: Literal["warn", "stop"] = key("warn", "What a collapse of the features does.")
    stop_when: Literal["never", "stable"] = key("never", "stable: stop once the features have settled.")
    probe_labels: bool = key(False, "Log kNN accuracy on held-out training labels at every check.")
    budget: str | None = key(None, "Time for the run (90s, 30m, 1h30m): batch size and length are chosen to fit it.")
    plan: bool = key(False, "With budget: print the plan and stop.")
