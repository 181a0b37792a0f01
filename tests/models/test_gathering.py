"""Negatives and queues over two processes against one process with the joined batch."""

from pathlib import Path

import torch
import torch.distributed as dist
from forked_runs import Forks
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tpssl_hf.losses.contrastive import nt_xent
from tpssl_hf.models.queue import KeyQueue, gather_rows, own_rows

BATCH = 6


def joined() -> tuple[nn.Linear, Tensor, Tensor]:
    torch.manual_seed(0)
    return nn.Linear(5, 4), torch.randn(BATCH, 5), torch.randn(BATCH, 5)


def contrast(rows: slice) -> dict[str, Tensor]:
    """One step of SimCLR's loss and one of a queue on these rows of the joined batch; DDP averages the gradients."""
    layer, view1, view2 = joined()
    one, other = layer(view1[rows]), layer(view2[rows])
    gathered = gather_rows(one, with_gradient=True), gather_rows(other, with_gradient=True)
    loss = nt_xent(*gathered, own_rows(len(one)), 0.2)
    loss.backward()
    queue = KeyQueue(2 * BATCH, 5)
    queue.enqueue(view1[rows])
    return {"loss": loss.detach(), "gradient": layer.weight.grad, "keys": queue.keys, "position": queue.position}


def one_of_two(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    half = BATCH // 2
    save_file(contrast(slice(rank * half, (rank + 1) * half)), f"{folder}/{rank}.safetensors")
    dist.destroy_process_group()


def test_two_processes_see_the_negatives_and_keep_the_queue_of_one(forks: Forks, tmp_path: Path) -> None:
    forks.call(__file__, "one_of_two", tmp_path, [0, str(tmp_path)], [1, str(tmp_path)])
    first, second = (load_file(tmp_path / f"{rank}.safetensors") for rank in range(2))
    whole = contrast(slice(0, BATCH))
    torch.testing.assert_close((first["loss"] + second["loss"]) / 2, whole["loss"])
    torch.testing.assert_close((first["gradient"] + second["gradient"]) / 2, whole["gradient"])
    assert not torch.allclose(first["gradient"], second["gradient"]), "each process has anchors of its own"
    for found in (first, second):
        torch.testing.assert_close(found["keys"], whole["keys"])
        assert torch.equal(found["position"], whole["position"])
