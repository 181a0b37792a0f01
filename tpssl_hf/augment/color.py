"""Color and sharpness, each image of a batch with its own parameters; images are (B, 3, H, W) float32 in 0..255.

Each operation computes what torchvision's function of that name computes on a float tensor. It may write over the
``images`` it is given; what it returns is the result.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)  # columns of the jitter's factors and stages


def host_can_look(values: Tensor) -> bool:
    """Whether reading ``values`` does not make the host wait for a device."""
    return not values.is_cuda


def where_chosen(chosen: Tensor, operation: Callable[..., Tensor], images: Tensor, *parameters: Tensor) -> Tensor:
    """Apply ``operation`` to the images that are ``chosen`` (B,) and return all (B, 3, H, W).

    The host picks out the rows if it can; otherwise all are computed and the chosen ones kept. ``parameters`` have B
    rows each and follow ``images`` in the call.
    """
    if not host_can_look(chosen):
        return torch.where(chosen[:, None, None, None], operation(images.clone(), *parameters), images)
    rows = chosen.nonzero()[:, 0]
    if len(rows) == len(images):
        return operation(images, *parameters)
    if len(rows) > 0:
        changed = operation(images.index_select(0, rows), *(parameter[rows] for parameter in parameters))
        images.index_copy_(0, rows, changed)
    return images


def luma(images: Tensor) -> Tensor:
    """Return the brightness (B, 1, H, W) after ITU-R BT.601 of ``images``."""
    red, green, blue = images[:, 0:1], images[:, 1:2], images[:, 2:3]
    return red.mul(0.2989).add_(green, alpha=0.587).add_(blue, alpha=0.114)


def grayscale(images: Tensor) -> Tensor:
    """Replace all three channels by the brightness."""
    return luma(images).repeat(1, 3, 1, 1)


def solarize(images: Tensor, threshold: float = 128.0) -> Tensor:
    """Invert every value from ``threshold`` on; 128 is that of BYOL (Grill et al. 2020, appendix B)."""
    return torch.where(images >= threshold, 255.0 - images, images)


def shift_hue(images: Tensor, shift: Tensor) -> Tensor:
    """Turn the hue by ``shift`` (B,) of a full circle, at the same value and saturation in the sense of HSV.

    In sixths of the circle, a hue lies |h| away from red, where |h| = (green + blue - red - least) / chroma + 1, on
    green's side if there is more green than blue. The way back is channel = least + chroma * ramp(h), the ramps
    being 1 within a sixth of the channel's own hue and 0 further than two away. No branches, hence no masks.
    """
    red, green, blue = images.unbind(1)
    least = torch.minimum(red, green).minimum(blue)
    chroma = torch.maximum(red, green).maximum(blue).sub_(least)
    hue = green.add(blue).sub_(red).sub_(least).div_(chroma.clamp_min(1e-6)).add_(1)
    hue = hue.copysign_(green - blue).add_(6 * shift[:, None, None])
    hue.sub_(hue.div(6).floor_(), alpha=6)
    ramps = (hue - 3).abs_().sub_(1), 2 - (hue - 2).abs_(), 2 - (hue - 4).abs_()
    result = torch.empty_like(images)
    for channel, ramp in enumerate(ramps):
        torch.addcmul(least, chroma, ramp.clamp_(0, 1), out=result[:, channel])
    return result


def jitter_steps(stages: Tensor, factors: Tensor) -> Tensor:
    """Write brightness, contrast and saturation as three blends before the hue shift and three after it.

    All three are ratio * images + (1 - ratio) * background, with a background of zero, of the mean luma and of the
    luma, so that one blend does whichever is an image's turn. Three of the six change nothing.

    Args:
        stages: (B, 4) int64, a permutation of 0..3 per image: when each of the four operations has its turn.
        factors: (B, 3), those of brightness, contrast and saturation.

    Returns:
        (B, 6, 3) the ratio, the weight of the luma and the weight of its mean.
    """
    columns = torch.arange(6, device=stages.device)
    before = columns < 3
    turn = torch.where(before, columns, columns - 2)  # hue has one of four turns: before it 0..2, after it 1..3
    in_place = (turn < stages[:, HUE:]) == before
    has_turn = (stages[:, None, :HUE] == turn[:, None]) & in_place[:, :, None]
    ratios = torch.where(has_turn, factors[:, None], 1.0)
    return torch.stack((ratios.prod(dim=2), 1 - ratios[:, :, SATURATION], 1 - ratios[:, :, CONTRAST]), dim=2)


def jitter(images: Tensor, steps: Tensor, shift: Tensor) -> Tensor:
    """Change brightness, contrast, saturation and hue of each image in its own order, clamping after each.

    As torchvision's ``ColorJitter``; contrast is about the mean luma of the image as it is at that moment.

    Args:
        images: (B, 3, H, W).
        steps: (B, 6, 3) from ``jitter_steps``.
        shift: (B,) of the hue, -0.5..0.5.
    """
    idle = (steps[:, :, 0] == 1).all(dim=0).tolist() if host_can_look(steps) else [False] * 6
    for column in range(6):
        if column == 3:
            images = shift_hue(images, shift)
        if not idle[column]:
            ratio, of_luma, of_mean = steps[:, column, :, None, None, None].unbind(1)
            background = luma(images)
            mean = background.mean(dim=(2, 3), keepdim=True)
            background.mul_(of_luma).add_(mean * of_mean)
            images.mul_(ratio).add_(background).clamp_(0, 255)
    return images


def blur_width(image_size: int) -> int:
    """Return the odd number closest to a tenth of ``image_size``: 23 at 224 (Grill et al. 2020, appendix B)."""
    return 2 * round((image_size / 10 - 1) / 2) + 1 if image_size > 10 else 1


def _blur_by_shifts(images: Tensor, kernels: Tensor) -> Tensor:
    """Add up shifted copies, only as many as the widest of the (B, 2R + 1) kernels needs.

    Rows are a few dozen pixels, too short to add up one by one. So shifts are along the whole padded memory of an
    image, by multiples of a row or of a pixel; what runs over from one row into the next ends up in the padding.
    """
    batch, channels, height, width = images.shape
    radius = int((kernels > 0).any(dim=0).sum()) // 2
    weights = kernels[:, kernels.shape[1] // 2 :, None].unbind(1)
    row = width + 2 * radius
    memory = functional.pad(images, (radius,) * 4, mode="reflect").flatten(1)
    for stride in (row, 1):
        length = memory.shape[1] - 2 * radius * stride
        shifted = [memory.narrow(1, start * stride, length) for start in range(2 * radius + 1)]
        total = shifted[radius] * weights[0]
        for offset in range(1, radius + 1):
            pair = shifted[radius - offset] + shifted[radius + offset]
            total.add_(pair.mul_(weights[offset]))
        memory = total
    strides = memory.shape[1], (height + 2 * radius) * row, row, 1
    return memory.as_strided((batch, channels, height, width), strides).contiguous()


def _blur_by_convolution(images: Tensor, kernels: Tensor) -> Tensor:
    """Do the same with as many operations whatever the kernels are, so that the host need not know them."""
    batch, channels, height, width = images.shape
    radius = kernels.shape[1] // 2
    kernels = kernels.repeat_interleave(channels, dim=0)
    planes = functional.pad(images, (radius,) * 4, mode="reflect")
    planes = planes.view(1, batch * channels, height + 2 * radius, width + 2 * radius)
    planes = functional.conv2d(planes, kernels[:, None, None, :], groups=batch * channels)
    planes = functional.conv2d(planes, kernels[:, None, :, None], groups=batch * channels)
    return planes.view(batch, channels, height, width)


def gaussian_blur(images: Tensor, sigma: Tensor, width: int) -> Tensor:
    """Convolve with Gaussians of standard deviation ``sigma`` (B,) cut off to ``width`` pixels, mirrored at edges."""
    radius = width // 2
    offsets = torch.arange(-radius, radius + 1, device=images.device)
    kernels = (-0.5 * (offsets / sigma[:, None]) ** 2).softmax(dim=1)
    kernels = kernels * (kernels > 1e-5)  # the rest is less than a hundredth of a level
    return _blur_by_shifts(images, kernels) if host_can_look(kernels) else _blur_by_convolution(images, kernels)
