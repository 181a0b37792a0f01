"""Adapt a pretrained timm backbone to your own pictures, then finetune it with few labels."""

__version__ = "0.1.0"
