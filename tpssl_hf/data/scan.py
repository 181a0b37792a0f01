"""One look at every image and label before training: the report of what it met.

Images that cannot be decoded are quarantined with a reason; none is ever repaired or replaced by a neighbor.
"""

import json
import statistics
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tpssl_hf.data.findings import Findings
from tpssl_hf.data.reading import UnreadableImage as UnreadableImage
from tpssl_hf.data.reading import decode_image as decode_image
from tpssl_hf.errors import InputError

MAX_BAD_SHARE = 0.05
UNLABELED = -1


def check_labels(values: list[Any], wheres: list[str], class_names: tuple[str, ...] | None) -> np.ndarray:
    """Return labels (N,) int64, with -1 for None.

    Args:
        values: what the label column holds.
        wheres: where each value stands, for the error message.
        class_names: the classes, or None if their number is unknown.

    Raises:
        InputError: if a label is no whole number, or no class.
    """
    legal = "a whole number from 0" + (f" to {len(class_names) - 1}" if class_names is not None else "")
    for value, where in zip(values, wheres, strict=True):
        is_whole = isinstance(value, int) and not isinstance(value, bool)
        too_large = is_whole and class_names is not None and value >= len(class_names)
        if value is not None and (not is_whole or value < UNLABELED or too_large):
            raise InputError(
                f"The label of {where} is {value!r}; a label must be {legal}, or -1 or None for an unlabeled image."
            )
    return np.array([UNLABELED if value is None else value for value in values], dtype=np.int64)


@dataclass(frozen=True)
class ScanReport(Findings):
    """What a look at every image found; of pixels, see :class:`tpssl_hf.data.findings.Findings`.

    Attributes:
        dataset: short name of the data set.
        images: how many images can be used.
        bad: ``where`` and ``reason`` of each quarantined image.
        heights: least, median and greatest height before shrinking.
        widths: least, median and greatest width before shrinking.
        labels: how many images have each label (``unlabeled`` for none); empty without a label column.
        duplicates: how many images have exactly the pixels of an earlier one, as they are stored.
        seconds: how long the scan took.
        masks: how many images have a mask; None for data without masks.
        pixel_shares: share of each class, and of ``ignored`` ones, among the pixels of all masks as they are stored.
        left_out: files that look like images and are not read.
        notes: how the data set was understood, a sentence each.
    """

    dataset: str
    images: int
    bad: list[dict[str, str]]
    heights: tuple[int, int, int]
    widths: tuple[int, int, int]
    labels: dict[str, int]
    duplicates: int
    seconds: float
    masks: int | None = None
    pixel_shares: dict[str, float] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def summary(self) -> str:
        """Return the report in a few lines for people."""
        lines = [
            f"{self.dataset}: {self.images:,} images, scanned in {self.seconds:.1f} s",
            f"  height {' / '.join(map(str, self.heights))}, width {' / '.join(map(str, self.widths))} "
            "(least / median / greatest)",
        ]
        if self.labels:
            shown = [f"{name} {count:,}" for name, count in list(self.labels.items())[:10]]
            more = f", and {len(self.labels) - 10} more" if len(self.labels) > 10 else ""
            lines.append(f"  labels: {', '.join(shown)}{more}")
        lines += [f"  {note}" for note in self.notes]
        if self.left_out:
            kinds = Counter(Path(name).suffix.lower() or "no suffix" for name in self.left_out)
            most = ", ".join(f"{kind} {count:,}" for kind, count in kinds.most_common(5))
            lines.append(
                f"  {len(self.left_out):,} files that look like images are not read ({most}): "
                f"{', '.join(self.left_out[:5])}{', ...' if len(self.left_out) > 5 else ''}"
            )
        if self.masks is not None:
            shares = [f"{name} {share:.1%}" for name, share in self.pixel_shares.items()]
            lines.append(f"  {self.masks:,} have a mask; of its pixels {', '.join(shares)}")
        if self.duplicates:
            lines.append(f"  {self.duplicates:,} are exact copies of another image")
        lines += self.pixel_lines(self.images, self.seconds)
        if self.bad:
            lines.append(f"  {len(self.bad):,} cannot be read and are left out: {_first_few(self.bad)}")
        return "\n".join(lines)

    def write(self, path: Path) -> None:
        """Write the report as JSON."""
        path.write_text(json.dumps(asdict(self), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def least_median_greatest(values: list[int]) -> tuple[int, int, int]:
    """Return the three numbers by which the report describes a list of sizes."""
    return min(values), round(statistics.median(values)), max(values)


def count_labels(labels: np.ndarray | None, class_names: tuple[str, ...] | None) -> dict[str, int]:
    """Return how many of ``labels`` (N,) are of each class, by name where names are known; a class may have none."""
    if labels is None:
        return {}
    counts = Counter(labels.tolist())
    classes = range(len(class_names)) if class_names is not None else sorted(counts.keys() - {UNLABELED})
    named = {class_names[label] if class_names is not None else str(label): counts[label] for label in classes}
    return named | ({"unlabeled": counts[UNLABELED]} if UNLABELED in counts else {})


def refuse_if_many_are_bad(bad: list[dict[str, str]], total: int, name: str) -> None:
    """Raise if more than 5 % of ``total`` images cannot be read: then it is not the data set it is taken for."""
    if len(bad) > MAX_BAD_SHARE * total:
        raise InputError(
            f"{len(bad):,} of {total:,} images of {name!r} cannot be read, more than the {MAX_BAD_SHARE:.0%} that "
            f"are left out silently: {_first_few(bad)}. Repair or remove them."
        )


def _first_few(bad: list[dict[str, str]]) -> str:
    shown = "; ".join(f"{entry['where']}: {entry['reason']}" for entry in bad[:5])
    return shown + ("; ..." if len(bad) > 5 else "")
