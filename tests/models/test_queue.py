import pytest
import torch
import torch.nn.functional as F

from tpssl_hf.errors import InputError
from tpssl_hf.models.queue import KeyQueue, check_queue, gather_rows, own_rows


def test_it_starts_as_unit_rows_that_are_the_same_everywhere() -> None:
    torch.manual_seed(1)
    one = KeyQueue(8, 3)
    torch.manual_seed(2)
    other = KeyQueue(8, 3)
    assert torch.equal(one.keys, other.keys)
    torch.testing.assert_close(one.keys.norm(dim=1), torch.ones(8))


def test_the_oldest_keys_leave_first_and_the_position_wraps() -> None:
    queue = KeyQueue(6, 2)
    batches = [torch.randn(2, 2) for _ in range(5)]
    for batch in batches:
        queue.enqueue(batch)
    expected = torch.cat([F.normalize(batches[b], dim=1) for b in (3, 4, 2)])
    torch.testing.assert_close(queue.keys, expected)
    assert queue.position.item() == 4


def test_a_key_that_is_not_finite_leaves_its_place_as_it_is() -> None:
    queue = KeyQueue(4, 2)
    before = queue.keys.clone()
    queue.enqueue(torch.tensor([[float("nan"), 1.0], [3.0, 4.0]]))
    assert torch.equal(queue.keys[0], before[0])
    torch.testing.assert_close(queue.keys[1], torch.tensor([0.6, 0.8]))


def test_everything_survives_in_the_state_dict() -> None:
    queue, other = KeyQueue(4, 2), KeyQueue(4, 2)
    queue.enqueue(torch.randn(3, 2))
    other.load_state_dict(queue.state_dict())
    assert torch.equal(queue.keys, other.keys) and other.position.item() == 3


@pytest.mark.parametrize(("size", "batch", "fitting"), [(100, 64, 128), (32, 64, 64), (200, 64, 192)])
def test_a_queue_the_batch_does_not_divide_is_refused_with_one_that_fits(size: int, batch: int, fitting: int) -> None:
    with pytest.raises(InputError, match=f"queue_size {size}.*--queue_size {fitting}"):
        check_queue(size, batch)
    check_queue(fitting, batch)


def test_one_process_gathers_its_own_rows() -> None:
    rows = torch.randn(3, 2)
    assert gather_rows(rows, with_gradient=True) is rows
    assert own_rows(3) == slice(0, 3)
