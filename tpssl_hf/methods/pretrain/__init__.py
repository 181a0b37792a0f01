"""Target pretraining methods. A new one is one file and one line here."""

from tpssl_hf.methods.base import MethodSpec
from tpssl_hf.methods.pretrain import byol, densecl, distill, moco, pixpro, simclr

PRETRAIN: dict[str, MethodSpec] = {
    "byol": byol.SPEC,
    "moco": moco.SPEC,
    "simclr": simclr.SPEC,
    "densecl": densecl.SPEC,
    "distill": distill.SPEC,
    "pixpro": pixpro.SPEC,
}
