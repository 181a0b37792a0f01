"""What a scan found out about pixels: where they are not what a plain look at the files would show."""

from dataclasses import dataclass, field

from tpssl_hf.data.conversion import Range

FEW_LEVELS = 16
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

    def pixel_lines(self, images: int, seconds: float) -> list[str]:
        """Return the lines for people that are worth saying of ``images`` scanned in ``seconds``."""
        lines = self._wide_lines(images) if self.wide_range is not None else []
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
                f"decoded anew in every epoch, in {1000 * seconds / max(1, images):.1f} ms each as in this scan: "
                "lower cache_scale, or raise cache_budget"
            )
        share, least = self.enlarged_crops, self.enlarged_crops_at_full_size
        if share is not None and least is not None and share - least >= NOTABLE:
            lines.append(
                f"  {share:.0%} of the crops have fewer pixels than the views and are enlarged, of the full images "
                f"{least:.0%} would: raise cache_scale"
            )
        return lines

    def _wide_lines(self, images: int) -> list[str]:
        assert self.wide_range is not None and self.wide_extent is not None
        others = f" (the other {images - self.wide:,} have 8 bits)" if self.wide < images else ""
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
