"""What a scan found out about pixels: where they are not what a plain look at the files would show."""

import hashlib
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from tpssl_hf.augment.geometry import CROP_DRAWS, random_resized_crop_boxes
from tpssl_hf.augment.policies import ViewPolicy
from tpssl_hf.data.conversion import Range, common_range
from tpssl_hf.data.decode import AMBIGUOUS, Decoded
from tpssl_hf.data.reading import UPRIGHT
from tpssl_hf.errors import InputError

FEW_LEVELS = 16
CROPS = 8192  # drawn to find the share that is enlarged
NOTABLE = 0.1  # a share of crops enlarged without need from which on people are told


@dataclass(frozen=True, kw_only=True)
class Findings:
    """What :class:`tpssl_hf.data.scan.ScanReport` says of pixels.

    Attributes:
        wide: how many images have gray values of more than eight bits.
        wide_range: those values that become black and white, in all images of the data set; None without such images.
        wide_extent: least and greatest of those values.
        wide_levels: how many of the 256 gray levels hold 99 % of their pixels.
        wide_clipped: how many of these images reach beyond ``wide_range``, which came from other images then.
        read_differently: how many images plain pipelines (transformers' ``load_image``) see other pixels of.
        read_differently_because: for how many of them for which reason.
        more_frames: how many files hold more frames or pages than the first, which is used.
        turned: how many images are turned upright by their EXIF orientation.
        masks_of_turned: how many of these have a mask without orientation, by what it was drawn on.
        cached: whether decoded pixels are kept; if not, they are decoded whenever they are needed.
        pixel_bytes: size of all decoded pixels and masks.
        enlarged_crops: share of the random crops of training that have fewer pixels than the view they become; None
            where there are no such crops.
        enlarged_crops_at_full_size: the same if images were not shrunk before.
    """

    wide: int = 0
    wide_range: Range | None = None
    wide_extent: Range | None = None
    wide_levels: int = 0
    wide_clipped: int = 0
    read_differently: int = 0
    read_differently_because: dict[str, int] = field(default_factory=dict)
    more_frames: int = 0
    turned: int = 0
    masks_of_turned: dict[str, int] = field(default_factory=dict)
    cached: bool = True
    pixel_bytes: int = 0
    enlarged_crops: float | None = None
    enlarged_crops_at_full_size: float | None = None

    def pixel_lines(self, pictures: int, seconds: float) -> list[str]:
        """Return the lines for people that are worth saying of ``pictures`` scanned in ``seconds``."""
        lines = self._wide_lines(pictures) if self.wide_range is not None else []
        if self.read_differently:
            reasons = ", ".join(f"{reason} {count:,}" for reason, count in self.read_differently_because.items())
            lines.append(
                f'  warning: plain pipelines, which call convert("RGB"), see other pixels of {self.read_differently:,}'
                f" images ({reasons}): save images as 8-bit RGB, these here and those to be predicted"
            )
        if self.more_frames:
            lines.append(f"  {self.more_frames:,} hold several frames or pages, of which the first is used")
        if self.turned:
            lines.append(f"  {self.turned:,} are turned upright by their EXIF orientation")
        if self.masks_of_turned:
            shares = ", ".join(f"{drawn_on} {count:,}" for drawn_on, count in self.masks_of_turned.items())
            lines.append(f"  their masks without orientation were drawn on: {shares}")
        if not self.cached:
            lines.append(
                f"  not cached: the pixels take {self.pixel_bytes / 2**30:.3g} GiB, more than cache_budget; they are "
                f"decoded anew in every epoch, in {1000 * seconds / max(1, pictures):.1f} ms each as in this scan: "
                "lower cache_scale, or raise cache_budget"
            )
        share, least = self.enlarged_crops, self.enlarged_crops_at_full_size
        if share is not None and least is not None and share - least >= NOTABLE:
            lines.append(
                f"  {share:.0%} of the crops have fewer pixels than the views and are enlarged, of the full images "
                f"{least:.0%} would: raise cache_scale"
            )
        return lines

    def _wide_lines(self, pictures: int) -> list[str]:
        assert self.wide_range is not None and self.wide_extent is not None
        others = f" (the other {pictures - self.wide:,} have 8 bits)" if self.wide < pictures else ""
        clipped = f"; {self.wide_clipped:,} reach beyond and are clipped" if self.wide_clipped else ""
        low, high = self.wide_range
        lines = [
            f"  {self.wide:,} have more than 8 bits{others}: in all of them {low:g} becomes black and {high:g} white"
            + clipped
        ]
        if self.wide_levels < FEW_LEVELS:
            least, greatest = self.wide_extent
            lines.append(
                f"  warning: 99 % of their pixels share {self.wide_levels} of the 256 gray levels, because values "
                f"reach from {least:g} to {greatest:g}: replace values that stand for missing data"
            )
        return lines


@dataclass
class Gathered:
    """What the pass over the pictures has found so far; lists are in the order of the rows that can be used."""

    rows: list[int] = field(default_factory=list)
    sizes: list[tuple[int, int]] = field(default_factory=list)
    full_sizes: list[tuple[int, int]] = field(default_factory=list)
    bad: list[dict[str, str]] = field(default_factory=list)
    hashes: set[bytes] = field(default_factory=set)
    has_mask: list[bool] = field(default_factory=list)
    mask_pixels: np.ndarray = field(default_factory=lambda: np.zeros(256, dtype=np.int64))
    extents: list[Range] = field(default_factory=list)
    wide_pixels: np.ndarray = field(default_factory=lambda: np.zeros(256, dtype=np.int64))
    differs: Counter[str] = field(default_factory=Counter)
    drawn_on: Counter[str] = field(default_factory=Counter)
    more_frames: int = 0
    turned: int = 0

    def add(self, row: int, picture: Decoded) -> None:
        """Note a picture that can be used."""
        image = picture.image
        size = image.pixels.shape[:2]
        self.rows.append(row)
        self.sizes.append(size)
        self.full_sizes.append((image.height, image.width))
        self.hashes.add(hashlib.blake2b(image.pixels.data, digest_size=16, person=b"%dx%d" % size).digest())
        self.has_mask.append(picture.mask is not None)
        if picture.mask is not None:
            self.mask_pixels += np.bincount(picture.mask.ravel(), minlength=256)
        if image.extent is not None:
            self.extents.append(image.extent)
            self.wide_pixels += np.bincount(image.pixels[..., 0].ravel(), minlength=256)
        self.differs.update([image.differs] if image.differs else [])
        self.drawn_on.update([picture.drawn_on] if picture.drawn_on else [])
        self.more_frames += image.has_more_frames
        self.turned += image.orientation != UPRIGHT

    def refuse_ambiguous_masks(self, name: str) -> None:
        """Refuse masks of the data set ``name`` of which nobody knows whether to turn them with their images.

        Raises:
            InputError: if there are any.
        """
        if self.drawn_on[AMBIGUOUS]:
            others = [f"{count:,} others fit {key}" for key, count in self.drawn_on.items() if key != AMBIGUOUS]
            raise InputError(
                f"{self.drawn_on[AMBIGUOUS]:,} images of {name!r} are turned by their EXIF orientation, their masks "
                f"are not, and the sizes do not tell what these were drawn on{''.join(f' ({o})' for o in others)}: "
                "give `--mask_orientation image` if on the image as it is shown, or `--mask_orientation stored` if on "
                "the stored pixels, so that they are turned with it."
            )

    def findings(self, wide_range: Range) -> dict[str, Any]:
        """Return the fields of :class:`Findings` that follow, ``wide_range`` having been used."""
        facts: dict[str, Any] = {
            "read_differently": self.differs.total(),
            "read_differently_because": dict(self.differs),
            "more_frames": self.more_frames,
            "turned": self.turned,
            "masks_of_turned": dict(self.drawn_on),
        }
        if not self.extents:
            return facts
        lows, highs = np.array(self.extents).T
        common = np.sort(self.wide_pixels)[::-1].cumsum()
        return facts | {
            "wide": len(self.extents),
            "wide_range": wide_range,
            "wide_extent": (float(lows.min()), float(highs.max())),
            "wide_levels": int(np.searchsorted(common, 0.99 * common[-1])) + 1,
            "wide_clipped": int(((lows < wide_range[0]) | (highs > wide_range[1])).sum()),
        }

    def wide_range(self) -> Range | None:
        """Return :func:`tpssl_hf.data.conversion.common_range` of the pictures so far."""
        return common_range(self.extents)


def enlarged_share(sizes: np.ndarray, side: int, crop_scale: tuple[float, float]) -> float:
    """Return the share of random resized crops that have fewer pixels than the views they become.

    Args:
        sizes: (N, 2) heights and widths of the images that are cropped.
        side: of the square views.
        crop_scale: least and greatest area of a crop as a share of the image's.
    """
    chosen = torch.from_numpy(sizes[np.linspace(0, len(sizes) - 1, CROPS).round().astype(np.int64)])
    numbers = torch.rand(CROPS, CROP_DRAWS, generator=torch.Generator().manual_seed(0))
    left, top, right, bottom = random_resized_crop_boxes(numbers, chosen, crop_scale, ViewPolicy.crop_ratio).unbind(1)
    return float(((right - left) * (bottom - top) < side * side).double().mean())
