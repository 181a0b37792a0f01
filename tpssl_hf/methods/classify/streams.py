"""Views that several learners share; the numbers keep their random draws apart."""

from tpssl_hf.augment.classify_views import strong_view, weak_view
from tpssl_hf.augment.pretrain_views import ViewSettings
from tpssl_hf.methods.base import Views

LABELED_WEAK = 11
UNLABELED_WEAK, UNLABELED_WEAK2 = 12, 13
UNLABELED_STRONG, UNLABELED_STRONG2 = 14, 15
LABELED_STRONG, LABELED_STRONG2 = 16, 17


def labeled_weak(settings: ViewSettings) -> Views:
    """Return the stream ``labeled`` with ``weak`` (B, 3, H, W); the recipe adds ``labels``."""
    return {"labeled": lambda images: {"weak": weak_view(images, settings, LABELED_WEAK)}}


def weak_and_strong(settings: ViewSettings) -> Views:
    """Return ``labeled`` with ``weak``; and ``unlabeled`` with ``weak``, ``strong`` (U, 3, H, W), ``index`` (U,)."""
    return {
        **labeled_weak(settings),
        "unlabeled": lambda images: {
            "weak": weak_view(images, settings, UNLABELED_WEAK),
            "strong": strong_view(images, settings, UNLABELED_STRONG),
            "index": images.index,
        },
    }
