"""Adapt a pretrained timm backbone to your own images, then finetune it with few labels."""

__version__ = "0.1.0"

from tpssl_hf import _auto_registration as _auto_registration
