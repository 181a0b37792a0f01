"""Configuration of a review: which predictions, and where their images are."""

from dataclasses import dataclass

from tpssl_hf.config.parser import key


@dataclass(frozen=True)
class ReviewConfig:
    """Review of predictions."""

    predictions: str = key("", "Finished folder of predict, of a classifier.")
    dataset: str | None = key(None, "Where the images are now, if they have moved since.")
    num_workers: int = key(4, "Threads that make thumbnails.")


@dataclass(frozen=True)
class ReviewArgs:
    """Every key of review."""

    review: ReviewConfig
