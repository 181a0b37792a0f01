"""Files of weights that would run code, mean nothing, or are none: nothing in them is run, a sentence says why."""

import argparse
import gzip
import io
import os
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tpssl_hf.convert.read import read_weights
from tpssl_hf.errors import InputError

State = dict[str, Tensor]


class Evil:
    """Makes a folder when it is unpickled."""

    def __init__(self, place: str) -> None:
        self.place = place

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.place,)


class Unknown:
    """A class of somebody's own."""


@pytest.fixture
def state(tiny_backbone: nn.Module) -> State:
    return tiny_backbone.state_dict()


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_file_is_not_run(tmp_path: Path, state: State, zipped: bool) -> None:
    file, trap = tmp_path / "evil.pth", tmp_path / "trap"
    torch.save({"state_dict": state, "x": Evil(str(trap))}, file, _use_new_zipfile_serialization=zipped)
    with pytest.raises(InputError, match=r"evil.pth holds posix.mkdir.*was not read.*torch.save\(torch.load\("):
        read_weights(file)
    assert not trap.exists()


def test_records_beside_the_weights_are_passed_by_unread(tmp_path: Path, state: State) -> None:
    file, trap = tmp_path / "args.pth", tmp_path / "trap"
    torch.save({"model": state, "args": argparse.Namespace(lr=1.0, more=argparse.Namespace())}, file)
    assert len(read_weights(file).tensors) == len(state)
    torch.save({"model": state, "args": argparse.Namespace(x=Evil(str(trap)))}, file)
    with pytest.raises(InputError, match="holds posix.mkdir"):
        read_weights(file)
    assert not trap.exists()


def test_a_class_of_somebodys_own_is_named(tmp_path: Path) -> None:
    torch.save({"model": Unknown()}, tmp_path / "own.pt")
    with pytest.raises(InputError, match=r"holds .*test_convert_read.Unknown.*only unpickling could read"):
        read_weights(tmp_path / "own.pt")
    torch.save(nn.Linear(2, 2), tmp_path / "whole.pt")
    with pytest.raises(InputError, match="only unpickling could read"):
        read_weights(tmp_path / "whole.pt")


def header(content: str, data: bytes = b"\0" * 8) -> bytes:
    return struct.pack("<Q", len(content)) + content.encode() + data


ENTRY = '{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'
SECOND = '{"dtype":"F32","shape":[1],"data_offsets":[4,8]}'


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b"<!DOCTYPE html><html>", "is a web page"),
        (b"version https://git-lfs.github.com/spec/v1", "is a pointer of Git LFS"),
        (gzip.compress(b"weights", mtime=0), "is compressed; unpack it first"),
        (b"\x89HDF\r\n\x1a\n", "is an HDF5 file"),
        (b"anything else", "is not a file of weights"),
        (struct.pack("<Q", 2**62) + b"{", "its header would be 4,611,686,018,427,387,904 bytes of 9"),
        (struct.pack("<Q", 99) + b"{}", "its header would be 99 bytes of 10"),
        (header(f'{{"a":{ENTRY},"a":{SECOND}}}'), "holds 'a' twice"),
        (header('{"a":' * 100_000), "is damaged"),
        (header(f'{{"a":{ENTRY}}}', b""), "is damaged"),
        (header('{"a":{"dtype":"F32","shape":[1e9],"data_offsets":[0,4]}}'), "is damaged"),
        (header("{}", b""), "holds no named tensors"),
        (b"\x80\x02}q\x00.", "is damaged"),
        (b"PK\x03\x04" + b"\0" * 60, "is damaged"),
    ],
)
def test_what_is_no_file_of_weights_is_said_to_be_none(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "file.bin").write_bytes(content)
    with pytest.raises(InputError, match=said):
        read_weights(tmp_path / "file.bin")


def test_folders_and_absent_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is a folder"):
        read_weights(tmp_path)
    with pytest.raises(InputError, match=r"does not exist; give a file that ends in .pth"):
        read_weights(tmp_path / "nothing.pth")


def archive(tree: Any, change: Callable[[zipfile.ZipFile, zipfile.ZipFile], None]) -> bytes:
    """Return a file of torch whose archive was written anew by ``change``."""
    original, changed = io.BytesIO(), io.BytesIO()
    torch.save(tree, original)
    with zipfile.ZipFile(original) as old, zipfile.ZipFile(changed, "w") as new:
        change(old, new)
    return changed.getvalue()


def doubled(old: zipfile.ZipFile, new: zipfile.ZipFile) -> None:
    for entry in old.infolist():
        new.writestr(entry.filename, old.read(entry))
    new.writestr(old.infolist()[0].filename, b"other")


def squeezed(old: zipfile.ZipFile, new: zipfile.ZipFile) -> None:
    for entry in old.infolist():
        new.writestr(entry.filename, old.read(entry), zipfile.ZIP_DEFLATED)


def cut(old: zipfile.ZipFile, new: zipfile.ZipFile) -> None:
    for entry in old.infolist():
        new.writestr(entry.filename, old.read(entry)[: 4 if "/data/" in entry.filename else None])


def program(old: zipfile.ZipFile, new: zipfile.ZipFile) -> None:
    new.writestr("net/code/__torch__.py", "")


def foreign(old: zipfile.ZipFile, new: zipfile.ZipFile) -> None:
    new.writestr("photo.png", "")


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (doubled, "data.pkl' twice"),
        (squeezed, "is compressed inside"),
        (cut, "is damaged"),
        (program, "is a TorchScript program"),
        (foreign, "a zip archive that torch did not write"),
    ],
)
def test_archives_that_torch_did_not_write_so_are_refused(tmp_path: Path, change: Any, said: str) -> None:
    (tmp_path / "file.pth").write_bytes(archive({"a": torch.ones(4)}, change))
    with pytest.raises(InputError, match=said):
        read_weights(tmp_path / "file.pth")


def crowded() -> dict[str, Any]:
    table: dict[str, Any] = {"x": 1}
    for _ in range(8):
        table = {str(number): table for number in range(20)}
    return table


def shadowed(old: zipfile.ZipFile, new: zipfile.ZipFile) -> None:
    for entry in old.infolist():
        new.writestr(entry.filename, old.read(entry).replace(b"itemz", b"items"))


@pytest.mark.parametrize(
    ("tree", "said"),
    [
        (torch.ones(2), "holds a Tensor instead of named tensors"),
        ([torch.ones(2)], "holds a list instead of named tensors"),
        ({"epoch": 3, 7: torch.ones(2)}, "holds no named tensors; its entries are 'epoch', 7"),
        ({"a": {"b": torch.ones(1)}, "a.b": torch.ones(1)}, "holds 'a.b' twice"),
        ({"a" * 501: torch.ones(1)}, "a name of 501 letters"),
        (crowded(), "more entries than any network has"),
    ],
)
def test_trees_without_a_meaning_are_refused(tmp_path: Path, tree: Any, said: str) -> None:
    torch.save(tree, tmp_path / "tree.pth")
    with pytest.raises(InputError, match=said):
        read_weights(tmp_path / "tree.pth")


def test_an_attribute_does_not_stand_for_a_tables_method(tmp_path: Path) -> None:
    tree = OrderedDict(a=torch.ones(1))
    tree.itemz = 7  # type: ignore[attr-defined]
    (tmp_path / "tree.pth").write_bytes(archive(tree, shadowed))
    assert list(read_weights(tmp_path / "tree.pth").tensors) == ["a"]
