"""The size images are shown at, where no key gives one: that of the weights."""

from dataclasses import replace

from tpssl_hf.config.shared import DataConfig
from tpssl_hf.models.own_size import own_image_size


def with_image_size(data: DataConfig, backbone: str, init: str) -> DataConfig:
    """Return ``data`` with the size its images are shown at, that of the weights where none was given."""
    return data if data.image_size else replace(data, image_size=own_image_size(backbone, init))
