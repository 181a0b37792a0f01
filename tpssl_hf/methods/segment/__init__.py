"""Semi-supervised learners for segmentation. A new one is one file and one line here."""

from tpssl_hf.methods.base import LearnerSpec
from tpssl_hf.methods.segment import classmix, clmb, cutmix, supervised, unimatch

SEGMENT: dict[str, LearnerSpec] = {
    "supervised": supervised.SPEC,
    "cutmix": cutmix.SPEC,
    "classmix": classmix.SPEC,
    "clmb": clmb.SPEC,
    "unimatch": unimatch.SPEC,
}
