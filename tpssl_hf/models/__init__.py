"""Networks: backbones are timm models, heads are ours."""
