import os
import stat
from pathlib import Path

import pytest

from tpssl_hf.files.atomic import REPLACED, replace_file, replacing_file, replacing_folder, swap_folder, write_new_file


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_replaced_in_one_piece_and_readable_as_the_umask_says(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    former = os.umask(0o027)
    try:
        replace_file(file, b"old")
        with replacing_file(file) as temporary:
            temporary.write_bytes(b"new")
            assert file.read_bytes() == b"old" and temporary.name == ".a.json.tmp"
    finally:
        os.umask(former)
    assert file.read_bytes() == b"new" and names(tmp_path) == ["a.json"]
    assert stat.S_IMODE(file.stat().st_mode) == 0o640


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    replace_file(tmp_path / "a", b"old")
    with pytest.raises(KeyboardInterrupt), replacing_file(tmp_path / "a", tmp_path / "mine") as temporary:
        temporary.write_bytes(b"half")
        raise KeyboardInterrupt
    assert (tmp_path / "a").read_bytes() == b"old" and names(tmp_path) == ["a"]


def test_a_folder_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    for content in ("old", "new"):
        with replacing_folder(folder) as temporary:
            temporary.mkdir()
            (temporary / content).write_text(content)
    assert names(folder) == ["new"] and names(tmp_path) == ["model"]
    with pytest.raises(RuntimeError), replacing_folder(folder) as temporary:
        temporary.mkdir()
        raise RuntimeError
    assert names(folder) == ["new"] and names(tmp_path) == ["model"]


def test_what_a_kill_between_the_two_renames_left_is_cleared(tmp_path: Path) -> None:
    folder, waiting, temporary = tmp_path / "model", tmp_path / f"{REPLACED}model", tmp_path / "temporary"
    for path in (folder, waiting, temporary):
        path.mkdir()
        (path / path.name).touch()
    swap_folder(temporary, folder)
    assert names(tmp_path) == ["model"] and names(folder) == ["temporary"]


def test_a_new_file_overwrites_nothing(tmp_path: Path) -> None:
    write_new_file(tmp_path / "a", b"first")
    with pytest.raises(FileExistsError):
        write_new_file(tmp_path / "a", b"second")
    assert (tmp_path / "a").read_bytes() == b"first"
