"""The size images are shown at, where no key gives one: that of the weights."""

from dataclasses import replace

from tpssl_hf.config.shared import DataConfig, TimeConfig
from tpssl_hf.models.own_size import own_image_size


def with_image_size(data: DataConfig, backbone: str, init: str, time: TimeConfig | None = None) -> DataConfig:
    """Return ``data`` with the size its images are shown at, that of the weights where none was given.

    With a budget it is left open: :mod:`tpssl_hf.tasks.budgeted_size` looks at what the machine can do.
    """
    if data.image_size or (time and time.budget):
        return data
    return replace(data, image_size=own_image_size(backbone, init))
