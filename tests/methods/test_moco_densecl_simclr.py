import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tpssl_hf.errors import InputError
from tpssl_hf.losses.contrastive import info_nce
from tpssl_hf.methods.pretrain import PRETRAIN, densecl
from tpssl_hf.methods.pretrain.densecl import DenseCL, DenseCLConfig, match
from tpssl_hf.methods.pretrain.moco import MoCo, MoCoConfig
from tpssl_hf.methods.pretrain.simclr import SimCLR, SimCLRConfig


def batch(count: int = 4, size: int = 64) -> dict[str, dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return {"images": {k: torch.randn(count, 3, size, size, generator=generator) for k in ("view1", "view2")}}


@pytest.fixture
def moco(tiny_backbone: nn.Module) -> MoCo:
    return MoCo(tiny_backbone, MoCoConfig(queue_size=8, projection_features=16)).train()


def test_moco_compares_with_the_queue_as_it_was_before_this_batch(moco: MoCo) -> None:
    before = moco.queue.keys.clone()
    queries = moco.projector(moco.backbone(batch()["images"]["view1"]))
    keys = moco.key_projector(moco.key_backbone(batch()["images"]["view2"]))
    losses = moco(batch(), 0.0)
    torch.testing.assert_close(losses["loss"], info_nce(queries, keys, before, 0.2))
    assert torch.equal(moco.queue.keys, before), "keys are stored after the step"
    moco.after_step(0.0)
    torch.testing.assert_close(moco.queue.keys[:4], F.normalize(keys, dim=1))
    assert torch.equal(moco.queue.keys[4:], before[4:])


def test_moco_keys_of_every_part_of_an_accumulated_batch_are_stored(moco: MoCo) -> None:
    moco(batch(2), 0.0)
    moco(batch(2), 0.0)
    moco.after_step(0.0)
    assert moco.queue.position.item() == 4
    moco.after_step(0.0)
    assert moco.queue.position.item() == 4, "and only once"


def test_moco_key_network_moves_at_its_constant_momentum(moco: MoCo) -> None:
    with torch.no_grad():
        for p in moco.backbone.parameters():
            p.add_(1.0)
    before = [p.clone() for p in moco.key_backbone.parameters()]
    moco.after_step(0.9)
    for old, new in zip(before, moco.key_backbone.parameters(), strict=True):
        torch.testing.assert_close(new - old, torch.full_like(old, 0.001), rtol=1e-2, atol=1e-6)


def test_simclr_puts_both_views_through_the_network_together(tiny_backbone: nn.Module) -> None:
    method = SimCLR(tiny_backbone, SimCLRConfig(projection_features=16)).train()
    method(batch(), 0.0)
    counted = next(b for n, b in tiny_backbone.named_buffers() if n.endswith("num_batches_tracked"))
    assert counted.item() == 1


def test_densecl_matches_each_cell_with_its_most_similar_one() -> None:
    generator = torch.Generator().manual_seed(0)
    query, key = torch.randn(2, 5, 2, 3, generator=generator), torch.randn(2, 5, 2, 3, generator=generator)
    found = match(query, key)
    for b in range(2):
        for i in range(6):
            cosines = [
                F.cosine_similarity(query[b].flatten(1)[:, i], key[b].flatten(1)[:, j], dim=0).item() for j in range(6)
            ]
            assert found[b, i] == max(range(6), key=cosines.__getitem__)


def test_densecl_matches_a_map_with_itself_cell_by_cell() -> None:
    maps = torch.randn(3, 8, 4, 4)
    assert torch.equal(match(maps, 7.0 * maps), torch.arange(16).expand(3, 16))


def test_densecl_weighs_both_losses_and_stores_one_key_per_image(tiny_backbone: nn.Module) -> None:
    config = DenseCLConfig(queue_size=8, hidden_features=32, projection_features=16, dense_weight=0.25)
    method = DenseCL(tiny_backbone, config).train()
    losses = method(batch(size=128), 0.0)
    torch.testing.assert_close(losses["loss"].detach(), 0.75 * losses["loss_whole"] + 0.25 * losses["loss_dense"])
    method.after_step(0.0)
    assert method.queue.position.item() == 4 and method.dense_queue.position.item() == 4


def test_dense_methods_refuse_a_backbone_without_maps() -> None:
    tokens = timm.create_model("test_vit", pretrained=False, num_classes=0)
    with pytest.raises(InputError, match="not maps.*instance-level ones"):
        densecl.check(tokens, DenseCLConfig(queue_size=8), 160, 8)


def test_dense_methods_refuse_images_smaller_than_the_stride(tiny_backbone: nn.Module) -> None:
    with pytest.raises(InputError, match="image_size 16 is smaller than the stride 32"):
        densecl.check(tiny_backbone, DenseCLConfig(queue_size=8), 16, 8)


@pytest.mark.parametrize("name", ["moco", "densecl"])
def test_a_queue_the_batch_does_not_divide_is_refused_before_the_first_step(
    name: str, tiny_backbone: nn.Module
) -> None:
    spec = PRETRAIN[name]
    with pytest.raises(InputError, match="queue_size 16384 is not a multiple of batch_size 48"):
        spec.check(tiny_backbone, spec.config(), 64, 48)
