"""Semi-supervised learners for classification. A new one is one file and one line here."""

from tpssl_hf.methods.base import LearnerSpec
from tpssl_hf.methods.classify import (
    fixmatch,
    flexmatch,
    freematch,
    label_spreading,
    linear_probe,
    mean_teacher,
    pseudo_label,
    self_tuning,
    softmatch,
    supervised,
    uda,
    vat,
)

CLASSIFY: dict[str, LearnerSpec] = {
    "supervised": supervised.SPEC,
    "mean_teacher": mean_teacher.SPEC,
    "vat": vat.SPEC,
    "uda": uda.SPEC,
    "fixmatch": fixmatch.SPEC,
    "self_tuning": self_tuning.SPEC,
    "flexmatch": flexmatch.SPEC,
    "freematch": freematch.SPEC,
    "softmatch": softmatch.SPEC,
    "linear_probe": linear_probe.SPEC,
    "pseudo_label": pseudo_label.SPEC,
    "label_spreading": label_spreading.SPEC,
}
