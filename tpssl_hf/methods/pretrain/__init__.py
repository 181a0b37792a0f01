"""Target pretraining methods. A new one is one file and one line here."""

from tpssl_hf.methods.base import MethodSpec
from tpssl_hf.methods.pretrain import byol, densecl, moco, pixpro, simclr

PRETRAIN: dict[str, MethodSpec] = {
    "byol": byol.SPEC,
    "moco": moco.SPEC,
    "simclr": simclr.SPEC,
    "densecl": densecl.SPEC,
    "pixpro": pixpro.SPEC,
}
