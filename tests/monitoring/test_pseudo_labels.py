import json
from pathlib import Path

import matplotlib.image
import pytest
import torch

from tpssl_hf.methods.base import PseudoLabels
from tpssl_hf.monitoring.pseudo_labels import NeverAcceptedWarning, PseudoLabelAudit, draw_pseudo_labels

NAMES = ("cat", "dog", "owl")


def pseudo(labels: list[int], confidence: list[float], weights: list[float]) -> PseudoLabels:
    index = torch.arange(len(labels))
    return PseudoLabels(index, torch.tensor(labels), torch.tensor(confidence), torch.tensor(weights))


EXAMPLE = pseudo([0, 0, 1, 0], [0.97, 0.99, 0.5, 1.0], [1.0, 1.0, 0.0, 1.0])


def test_counts_by_class_and_confidence_are_those_of_the_batch() -> None:
    entries = PseudoLabelAudit(NAMES, None, warn_after=100).look(1, EXAMPLE)
    assert entries["pseudo_predicted_per_class"] == [3, 1, 0]
    assert entries["pseudo_accepted_per_class"] == [3.0, 0.0, 0.0]
    assert entries["pseudo_confidence_histogram"] == [0, 0, 0, 0, 0, 1, 0, 0, 0, 3]
    assert "hindsight_precision" not in entries
    json.dumps(entries)


def test_precision_counts_accepted_images_of_known_truth_only() -> None:
    truth = torch.tensor([0, 2, 1, -1])
    entries = PseudoLabelAudit(NAMES, truth, warn_after=100).look(1, EXAMPLE)
    assert entries["hindsight_precision"] == 0.5  # of images 0 and 1; image 2 is not accepted, 3 not known
    assert entries["hindsight_precision_per_class"] == [0.5, None, None]


def test_weights_between_zero_and_one_weigh_the_precision() -> None:
    audit = PseudoLabelAudit(NAMES, torch.tensor([0, 1]), warn_after=100)
    entries = audit.look(1, pseudo([0, 0], [0.9, 0.8], [0.75, 0.25]))
    assert entries["hindsight_precision"] == pytest.approx(0.75)
    assert entries["pseudo_accepted_per_class"] == [1.0, 0.0, 0.0]


def test_nothing_accepted_has_no_precision() -> None:
    entries = PseudoLabelAudit(NAMES, torch.tensor([0]), warn_after=9).look(1, pseudo([0], [0.4], [0.0]))
    assert entries["hindsight_precision"] is None


def test_a_class_never_accepted_is_named_once_and_only_after_its_time() -> None:
    audit = PseudoLabelAudit(NAMES, None, warn_after=5)
    audit.look(4, EXAMPLE)
    with pytest.warns(
        NeverAcceptedWarning, match=r"up to step 5 no pseudo-label dog, owl has been accepted.*--method"
    ) as w:
        audit.look(5, EXAMPLE)
    assert len(w) == 1
    audit.look(6, EXAMPLE)  # warnings are errors


def test_what_was_accepted_and_said_survives_a_resume() -> None:
    audit = PseudoLabelAudit(NAMES, None, warn_after=5)
    audit.look(1, pseudo([1, 2], [1.0, 1.0], [1.0, 1.0]))
    tensors, values = audit.state()
    other = PseudoLabelAudit(NAMES, None, warn_after=5)
    other.load(tensors, json.loads(json.dumps(values)))
    other.look(5, EXAMPLE)  # dog and owl were accepted before


def test_the_image_is_drawn_from_the_log_and_left_out_without_pseudo_labels(tmp_path: Path) -> None:
    audit = PseudoLabelAudit(NAMES, torch.tensor([0, 2, 1, -1]), warn_after=100)
    entries = [{"step": step, **audit.look(step, EXAMPLE)} for step in (1, 2, 3)]
    draw_pseudo_labels(tmp_path / "with.png", [{"step": 0}, *entries], NAMES)
    draw_pseudo_labels(tmp_path / "without.png", [{"step": 1, "loss": 2.0}], NAMES)
    assert matplotlib.image.imread(tmp_path / "with.png").std() > 0.05
    assert not (tmp_path / "without.png").exists()
