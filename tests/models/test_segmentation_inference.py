from collections import defaultdict
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tpssl_hf.errors import InputError
from tpssl_hf.models.segmentation_inference import predict_masks
from tpssl_hf.models.segmenter import build_segmenter


def segmenter(architecture: str = "test_resnet") -> Any:
    torch.manual_seed(0)
    model, _ = build_segmenter(
        architecture, init="random", class_names=["a", "b", "c"], decoder_width=16, low_level_width=8
    )
    nn.init.normal_(model.decoder.classifier.weight)  # as small as it starts, one class could win everywhere
    return model


def images(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


class FromContext(nn.Module):
    """Logits that depend on where the window lies, so that windows disagree where they overlap."""

    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        self.classes = classes

    def forward(self, pixel_values: Tensor) -> Any:
        context = pixel_values.mean(dim=(2, 3), keepdim=True)
        channels = [pixel_values[:, c % 3] * (1 + c) + 9 * context[:, (c + 1) % 3] for c in range(self.classes)]
        return SimpleNamespace(logits=torch.stack(channels, dim=1))


@pytest.mark.parametrize("architecture", ["test_resnet", "test_convnext", "test_efficientnet"])
@pytest.mark.parametrize("size", [(1, 1), (1, 50), (50, 1), (17, 33), (64, 48)])
def test_every_mode_predicts_any_size(architecture: str, size: tuple[int, int]) -> None:
    model, batch = segmenter(architecture).eval(), images(2, 3, *size)
    modes: list[dict[str, Any]] = [{}, {"mode": "resize", "size": 20}, {"mode": "slide", "window": (24, 19)}]
    for options in modes:
        masks = predict_masks(model, batch, **options)
        assert masks.shape == (2, *size) and masks.dtype == torch.uint8 and masks.max() < 3


def test_whole_images_get_the_most_probable_class() -> None:
    model, batch = segmenter().eval(), images(2, 3, 37, 50)
    masks = predict_masks(model, batch)
    assert torch.equal(masks.long(), model(batch).logits.argmax(dim=1)) and len(masks.unique()) > 1


def test_resized_images_get_their_logits_back_at_their_own_size() -> None:
    model, batch = segmenter().eval(), images(2, 3, 37, 50)
    smaller = F.interpolate(batch, (32, 48), mode="bilinear", antialias=True)
    logits = F.interpolate(model(smaller).logits, (37, 50), mode="bilinear")
    masks = predict_masks(model, batch, mode="resize", size=(32, 48))
    assert torch.equal(masks.long(), logits.argmax(dim=1))


def test_one_window_over_everything_is_the_whole_image() -> None:
    model, batch = segmenter().eval(), images(2, 3, 37, 50)
    whole = predict_masks(model, batch)
    assert torch.equal(predict_masks(model, batch, mode="slide", window=(37, 50)), whole)
    assert torch.equal(predict_masks(model, batch, mode="slide", window=512), whole)


def slow_slide(model: Callable[[Tensor], Any], image: Tensor, window: int, step: int) -> Tensor:
    """Average the probabilities pixel by pixel, one window after the other."""
    height, width = image.shape[2:]
    seen: dict[tuple[int, int], list[Tensor]] = defaultdict(list)
    for top in range(0, height, step):
        for left in range(0, width, step):
            first_row, first_column = min(top, height - window), min(left, width - window)
            crop = image[:, :, first_row : first_row + window, first_column : first_column + window]
            probabilities = model(crop).logits.softmax(dim=1)
            for row in range(window):
                for column in range(window):
                    pixel = first_row + row, first_column + column
                    seen[pixel].append(probabilities[0, :, row, column])
            if left + window >= width:
                break
        if top + window >= height:
            break
    mask = torch.zeros(1, height, width, dtype=torch.uint8)
    for (row, column), values in seen.items():
        mask[0, row, column] = torch.stack(values).mean(dim=0).argmax()
    return mask


@pytest.mark.parametrize(("size", "window", "overlap", "step"), [((20, 31), 8, 0.5, 4), ((19, 16), 7, 0.0, 7)])
def test_windows_are_averaged_as_by_a_slow_loop(size: tuple[int, int], window: int, overlap: float, step: int) -> None:
    model, image = FromContext(), images(1, 3, *size)
    masks = predict_masks(model, image, mode="slide", window=window, overlap=overlap)
    assert torch.equal(masks, slow_slide(model, image, window, step))
    assert not torch.equal(masks, predict_masks(model, image))


def test_a_high_overlap_still_moves_the_window() -> None:
    masks = predict_masks(FromContext(), images(1, 3, 6, 5), mode="slide", window=3, overlap=0.99)
    assert torch.equal(masks, slow_slide(FromContext(), images(1, 3, 6, 5), 3, 1))


def test_more_than_256_classes_need_wider_numbers() -> None:
    assert predict_masks(FromContext(256), images(1, 3, 4, 4)).dtype == torch.uint8
    assert predict_masks(FromContext(300), 100 * images(1, 3, 4, 4)).dtype == torch.int64


@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_left_as_it_was(training: bool) -> None:
    model = segmenter().train(training)
    model.backbone.layer1.eval()
    modes = [module.training for module in model.modules()]
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    masks = predict_masks(model, images(2, 3, 40, 40), mode="slide", window=32)
    with pytest.raises(InputError):
        predict_masks(model, images(2, 3, 40, 40), mode="slide")
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())
    assert not masks.requires_grad and all(p.requires_grad and p.grad is None for p in model.parameters())


def test_training_and_evaluation_mode_predict_alike() -> None:
    batch = images(1, 3, 40, 40)
    assert torch.equal(predict_masks(segmenter().train(), batch), predict_masks(segmenter().eval(), batch))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "tile"}, "mode 'tile' is not whole, resize or slide"),
        ({"mode": "resize"}, "size None is not a positive number"),
        ({"mode": "slide", "window": (8, 0)}, r"window \(8, 0\) is not a positive"),
        ({"mode": "slide", "window": 8, "overlap": 1.0}, r"overlap 1.0 is not in \[0, 1\)"),
    ],
)
def test_what_cannot_be_done_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        predict_masks(FromContext(), images(1, 3, 16, 16), **options)


def test_a_single_image_without_its_batch_is_refused() -> None:
    with pytest.raises(InputError, match=r"shape \(3, 16, 16\)"):
        predict_masks(FromContext(), images(3, 16, 16))
