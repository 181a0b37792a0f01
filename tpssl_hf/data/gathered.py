"""What the one pass over a data set finds, image by image."""

import hashlib
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tpssl_hf.data.conversion import Range, common_range
from tpssl_hf.data.decode import AMBIGUOUS, Decoded
from tpssl_hf.data.reading import UPRIGHT
from tpssl_hf.errors import InputError


@dataclass
class Gathered:
    """What the pass over the images has found so far; lists are in the order of the rows that can be used."""

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

    def add(self, row: int, original: Decoded) -> None:
        """Note an image that can be used."""
        image = original.image
        size = image.pixels.shape[:2]
        self.rows.append(row)
        self.sizes.append(size)
        self.full_sizes.append((image.height, image.width))
        self.hashes.add(hashlib.blake2b(image.pixels.data, digest_size=16, person=b"%dx%d" % size).digest())
        self.has_mask.append(original.mask is not None)
        if original.mask is not None:
            self.mask_pixels += np.bincount(original.mask.ravel(), minlength=256)
        if image.extent is not None:
            self.extents.append(image.extent)
            self.wide_pixels += np.bincount(image.pixels[..., 0].ravel(), minlength=256)
        self.differs.update([image.differs] if image.differs else [])
        self.drawn_on.update([original.drawn_on] if original.drawn_on else [])
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
        """Return the fields of ``tpssl_hf.data.findings.Findings`` that follow, ``wide_range`` having been used."""
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
        """Return :func:`tpssl_hf.data.conversion.common_range` of the images so far."""
        return common_range(self.extents)
