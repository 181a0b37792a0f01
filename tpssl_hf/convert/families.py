"""How networks from elsewhere name their tensors, which of several copies to take, and what tells families apart."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from tpssl_hf.models.timm_export import Preprocessing

IMAGENET_MEAN, IMAGENET_STD = Preprocessing.mean, Preprocessing.std


@dataclass(frozen=True)
class Naming:
    """How a library names the tensors of an architecture.

    Attributes:
        title: whose names they are.
        rules: (pattern at the start of timm's name, its replacement); ``<a,b,c>`` in it stands for tensors that timm
            keeps as one, stacked in that order.
        whole: every name has a rule; otherwise the others are as in timm.
    """

    title: str
    rules: tuple[tuple[str, str], ...]
    whole: bool

    def sources(self, names: Iterable[str]) -> dict[str, tuple[str, ...]] | None:
        """Return timm's name to those in the file, or None where these rules are not about such an architecture."""
        found: dict[str, tuple[str, ...]] = {}
        changed = not self.rules
        for name in names:
            rule = next(((p, r) for p, r in self.rules if re.match(p, name)), None)
            if rule is None and self.whole:
                return None
            source = re.sub(rule[0], rule[1], name, count=1) if rule else name
            changed |= source != name
            parts = re.search(r"<(.+)>", source)
            found[name] = tuple(source.replace(parts[0], p) for p in parts[1].split(",")) if parts else (source,)
        return found if changed else None


def _vit(title: str, block: str, rest: dict[str, str], inner: dict[str, str]) -> Naming:
    rules = [(rf"{re.escape(mine)}(?=\.|$)", theirs) for mine, theirs in rest.items()]
    # A name may go on, or end, where a rule does: in_proj_weight takes the place of qkv.weight.
    rules += [(rf"blocks\.(\d+)\.{re.escape(mine)}(?=\.|$)", rf"{block}.{theirs}") for mine, theirs in inner.items()]
    return Naming(title, tuple(rules), whole=True)


def _torchvision_vit(first: str, second: str) -> Naming:
    return _vit(
        "torchvision ViT",
        r"encoder.layers.encoder_layer_\1",
        {
            "cls_token": "class_token",
            "pos_embed": "encoder.pos_embedding",
            "patch_embed.proj": "conv_proj",
            "norm": "encoder.ln",
        },
        {
            "norm1": "ln_1",
            "norm2": "ln_2",
            "attn.qkv.weight": "self_attention.in_proj_weight",
            "attn.qkv.bias": "self_attention.in_proj_bias",
            "attn.proj": "self_attention.out_proj",
            "mlp.fc1": f"mlp.{first}",
            "mlp.fc2": f"mlp.{second}",
        },
    )


def _transformers_vit(block: str, inner: dict[str, str]) -> Naming:
    rest = {
        "cls_token": "embeddings.cls_token",
        "pos_embed": "embeddings.position_embeddings",
        "patch_embed.proj": "embeddings.patch_embeddings.projection",
        "norm": "layernorm",
    }
    return _vit("transformers ViT", block, rest, {"norm1": "layernorm_before", "norm2": "layernorm_after", **inner})


def _transformers_resnet() -> Naming:
    rules = [
        (r"conv1\.(?=weight)", "embedder.embedder.convolution."),
        (r"bn1\.(?=\w+$)", "embedder.embedder.normalization."),
    ]
    for stage in range(4):
        begin, theirs = rf"layer{stage + 1}\.(\d+)\.", rf"encoder.stages.{stage}.layers.\1."
        rules += [(rf"{begin}downsample\.0\.", f"{theirs}shortcut.convolution.")]
        rules += [(rf"{begin}downsample\.1\.", f"{theirs}shortcut.normalization.")]
        for layer in range(3):
            rules += [(rf"{begin}conv{layer + 1}\.", f"{theirs}layer.{layer}.convolution.")]
            rules += [(rf"{begin}bn{layer + 1}\.", f"{theirs}layer.{layer}.normalization.")]
    return Naming("transformers ResNet", tuple(rules), whole=True)


def _sequential(first_stage: int) -> Naming:
    """A ResNet whose children were put into one nn.Sequential, with or without the pooling after its stem."""
    rules = [(r"conv1\.", "0."), (r"bn1\.", "1.")]
    rules += [(rf"layer{stage + 1}\.", f"{first_stage + stage}.") for stage in range(4)]
    return Naming("nn.Sequential of a ResNet", tuple(rules), whole=True)


PLAIN = Naming("timm and torchvision", (), whole=False)
# The first that fits is taken.
NAMINGS = (
    PLAIN,
    _torchvision_vit("0", "3"),
    _torchvision_vit("linear_1", "linear_2"),
    _transformers_vit(
        r"encoder.layer.\1",
        {
            "attn.qkv": "attention.attention.<query,key,value>",
            "attn.proj": "attention.output.dense",
            "mlp.fc1": "intermediate.dense",
            "mlp.fc2": "output.dense",
        },
    ),
    _transformers_vit(
        r"layers.\1",
        {
            "attn.qkv": "attention.<q_proj,k_proj,v_proj>",
            "attn.proj": "attention.o_proj",
            "mlp.fc1": "mlp.fc1",
            "mlp.fc2": "mlp.fc2",
        },
    ),
    _transformers_resnet(),
    _vit(
        "mmpretrain ViT",
        r"layers.\1",
        {
            "cls_token": "cls_token",
            "pos_embed": "pos_embed",
            "patch_embed.proj": "patch_embed.projection",
            "norm": "ln1",
        },
        {
            "norm1": "ln1",
            "norm2": "ln2",
            "attn.qkv": "attn.qkv",
            "attn.proj": "attn.proj",
            "mlp.fc1": "ffn.layers.0.0",
            "mlp.fc2": "ffn.layers.1",
        },
    ),
    Naming(
        "mmpretrain ResNet-D",
        (
            *((rf"conv1\.{place}\.", f"stem.{place}.") for place in (0, 1, 3, 4, 6)),
            (r"bn1\.", "stem.7."),
        ),
        whole=False,
    ),
    _sequential(4),
    _sequential(3),
)

# Of copies that fit equally, the first kind of these is taken: averages are what is evaluated, keys never are.
BRANCHES: tuple[tuple[str, frozenset[str]], ...] = (
    ("ema", frozenset({"ema", "averaged", "swa"})),
    ("teacher", frozenset({"teacher"})),
    ("trained", frozenset()),
    ("key", frozenset({"k", "key", "momentum", "target"})),
)


def branch_rank(prefix: str) -> int:
    """Return the place of a copy in ``BRANCHES`` by the words of its prefix."""
    words = set(re.split(r"[._]", prefix.lower()))
    named = [rank for rank, (_, kind) in enumerate(BRANCHES) if words & kind]
    return named[0] if named else 2


# Title, and the words that names have together in such a file; the first that fits is said.
FAMILIES: tuple[tuple[str, frozenset[str]], ...] = tuple(
    (title, frozenset(words.split()))
    for title, words in (
        ("PixPro", "encoder encoder_k projector_k"),
        ("DenseCL", "encoder_q queue2"),
        ("MoCo v3", "base_encoder momentum_encoder"),
        ("MoCo", "encoder_q"),
        ("SwAV", "prototypes"),
        ("lightly-train", "teacher_embedding_model"),
        ("lightly-train", "student_embedding_model"),
        ("DINO", "teacher student"),
        ("BYOL", "online_encoder"),
        ("BYOL", "online_network_state_dict"),
        ("solo-learn", "momentum_backbone"),
        ("mmpretrain", "meta state_dict backbone"),
        ("lightly", "backbone_momentum"),
        ("lightly", "backbone projection_head"),
        ("solo-learn", "pytorch-lightning_version backbone"),
        ("VICReg or Barlow Twins", "backbone projector"),
        ("MAE", "decoder_embed"),
        ("Lightning", "pytorch-lightning_version"),
    )
)


def family_of(names: Iterable[str], keys: frozenset[str]) -> str | None:
    """Return the title of the family a file is of, as far as its names tell."""
    words = keys | {word for name in names for word in name.split(".")}
    return next((title for title, marks in FAMILIES if marks <= words), None)
