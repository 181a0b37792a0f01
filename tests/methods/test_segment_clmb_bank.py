"""The parts of CLMB's memory, each against a loop."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tpssl_hf.methods.segment.clmb_bank import ClassBank, ClassSelectors, best_rows, sample_by_class

CLASSES, WIDTH = 3, 8


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_the_bank_is_first_in_first_out_and_never_above_its_size() -> None:
    bank, generator = ClassBank(CLASSES, 5, 2), torch.Generator().manual_seed(0)
    slow: list[list[Tensor]] = [[] for _ in range(CLASSES)]
    for number in range(8):
        rows = random(CLASSES, 4, 2, seed=number)
        rows[1, 2, 0] = float("nan")
        present = torch.rand(CLASSES, 4, generator=generator) < 0.4
        bank.enqueue(rows, present)
        for c in range(CLASSES):
            new = [row for row, there in zip(rows[c], present[c], strict=True) if there and row.isfinite().all()]
            slow[c] = (new + slow[c])[:5]
            assert bank.filled[c].sum() == len(slow[c]) <= 5
            assert torch.equal(bank.rows[c][bank.filled[c]], torch.stack(slow[c]) if slow[c] else torch.zeros(0, 2))
            assert bank.filled[c].int().diff().le(0).all(), "filled places come first"
    assert max(map(len, slow)) == 5


@pytest.mark.parametrize(("lowest", "wanted"), [(False, [3, 1]), (True, [0, 1])])
def test_the_highest_scores_are_kept_or_with_the_official_slip_the_lowest(lowest: bool, wanted: list[int]) -> None:
    rows = torch.arange(4.0)[None, :, None]
    scores, present = torch.tensor([[-1.0, 2.0, 9.0, 5.0]]), torch.tensor([[True, True, False, True]])
    kept, there = best_rows(rows, present, scores, 2, lowest=lowest)
    assert kept[0, :, 0].tolist() == wanted and there.all()
    kept, there = best_rows(rows, present, scores, 9, lowest=lowest)
    assert kept.shape == (1, 4, 1) and there[0].tolist() == [True, True, True, False]


def test_samples_are_pixels_of_their_class_without_repetition() -> None:
    labels = torch.randint(0, 4, (2, 3, 5), generator=torch.Generator().manual_seed(0))  # class 3 is beyond them
    labels[labels == 3] = 255
    features = torch.arange(30.0).view(2, 1, 3, 5)
    flat = labels.flatten()
    for count in (4, 30, 99):
        rows, present = sample_by_class(features, labels, CLASSES, count)
        assert rows.shape[:2] == present.shape == (CLASSES, min(count, 30))
        for c in range(CLASSES):
            found = rows[c, present[c], 0].long().tolist()
            assert len(found) == len(set(found)) == min(count, int((flat == c).sum()))
            assert all(flat[place] == c for place in found)


def test_selectors_are_a_network_of_its_own_for_each_class() -> None:
    torch.manual_seed(0)
    selectors = ClassSelectors(CLASSES, WIDTH)
    with torch.no_grad():
        for parameter in selectors.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape))
    rows, present = random(CLASSES, 6, WIDTH), torch.ones(CLASSES, 6, dtype=torch.bool)
    present[1, 4:] = False
    scores = selectors(rows, present)
    for c in range(CLASSES):
        inside = rows[c, present[c]]
        norm = nn.BatchNorm1d(WIDTH)
        norm.weight.data, norm.bias.data = selectors.gamma[c, 0].detach(), selectors.beta[c, 0].detach()
        expected = F.leaky_relu(norm(inside @ selectors.hidden[c]), 0.2) @ selectors.output[c] + selectors.bias[c]
        torch.testing.assert_close(scores[c, present[c]], expected[:, 0], rtol=1e-4, atol=1e-5)


def test_selectors_learn_and_do_not_move_the_features_they_score() -> None:
    rows = random(CLASSES, 6, WIDTH).requires_grad_()
    selectors = ClassSelectors(CLASSES, WIDTH)
    selectors(rows, torch.ones(CLASSES, 6, dtype=torch.bool)).square().sum().backward()
    assert rows.grad is None and selectors.hidden.grad is not None and selectors.hidden.grad.any()
