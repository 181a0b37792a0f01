"""Without labels: what training destroyed is not saved."""

import numpy as np
import torch
from torch import nn

from tpssl_hf.tasks.pretrain.crops import Crops
from tpssl_hf.tasks.pretrain.selection import LAST, START, Selection

RANDOM = np.random.default_rng(0)
IMAGES, NOISE = RANDOM.normal(size=(400, 16)), RANDOM.normal(size=(400, 16))
START_CROPS = Crops.of(IMAGES, IMAGES + NOISE)
BETTER = Crops.of(IMAGES, IMAGES + 0.3 * NOISE)
WORSE = Crops.of(IMAGES, IMAGES + 4 * NOISE)
NARROW = Crops.of(IMAGES * (np.arange(16) < 6), (IMAGES + 0.1 * NOISE) * (np.arange(16) < 6))


def test_what_knows_images_worse_or_by_fewer_directions_is_not_sound() -> None:
    assert BETTER.is_sound(START_CROPS) and START_CROPS.is_sound(START_CROPS)
    assert not WORSE.is_sound(START_CROPS)
    assert NARROW.mean_rank > START_CROPS.mean_rank and not NARROW.is_sound(START_CROPS)
    assert Crops.restored(BETTER.values()) == BETTER and Crops.restored(None) is None


def considered(*snapshots: Crops) -> Selection:
    selection = Selection(crops=START_CROPS)
    for step, crops in enumerate(snapshots, 1):
        network = nn.Linear(1, 1)
        nn.init.constant_(network.weight, float(step))
        selection.consider_crops(LAST if step == len(snapshots) else f"step_{step}", network, crops, step)
    return selection


def test_the_last_sound_snapshot_is_saved() -> None:
    assert considered(BETTER, BETTER).chosen() == (LAST, None)
    assert considered(WORSE, NARROW).chosen() == (START, None)
    kept = considered(BETTER, WORSE)
    assert kept.chosen() == ("step_1", None) and torch.equal(kept.state["weight"], torch.ones(1, 1))
    again = Selection()
    again.load(kept.state, kept.values())
    assert again.values() == kept.values() and again.chosen() == kept.chosen()
