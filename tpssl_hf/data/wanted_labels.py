"""What is asked for by ``--labels``: a number, all of them, or a file."""

from pathlib import Path

from tpssl_hf.data.label_files import read_label_file
from tpssl_hf.data.sources import Source
from tpssl_hf.errors import InputError


def is_file(wanted: str) -> bool:
    """Return whether ``wanted``, as of :func:`tpssl_hf.data.label_splits.choose_labels`, is a file of labels."""
    return Path(wanted).suffix.lower() in (".json", ".csv")


def count_of(wanted: str) -> int:
    """Return how many labels are to be drawn.

    Raises:
        InputError: if it is no number above 0.
    """
    if not (wanted.isdecimal() and int(wanted) > 0):
        raise InputError(f"labels {wanted!r} is not a number above 0, `all`, or a .json or .csv file.")
    return int(wanted)


def refuse_unreadable(wanted: str) -> None:
    """Refuse what can be refused of ``wanted`` without having seen the images.

    Raises:
        InputError: if it is no number, `all` or file, or a file that does not hold labels.
    """
    if is_file(wanted):
        read_label_file(Path(wanted))
    elif wanted != "all":
        count_of(wanted)


def gives_several(wanted: str, source: Source) -> bool:
    """Return whether ``wanted`` gives images several labels.

    Raises:
        InputError: for a file that cannot be read.
    """
    return read_label_file(Path(wanted)).several if is_file(wanted) else bool(source.label_lists)
