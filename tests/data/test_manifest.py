"""The list of image files: scanned once, mapped by everybody, made anew when a folder changes."""

import os
import subprocess
import sys
import time

import numpy as np
import pytest

from data import manifest as module
from data.manifest import manifest
from utils.errors import BadInput


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "lockstep"


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "images"
    for name in ("b/2.jpg", "b/10.PNG", "a/deep/er/1.webp", "a/0.jpeg", "a/notes.txt", "b/._2.jpg"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    (folder / ".hidden").mkdir()
    settle(folder)
    return folder


def settle(folder):
    """Make every folder look as if it had last changed an hour ago."""
    hour_ago = time.time() - 3600
    for path in [folder, *folder.rglob("*")]:
        if path.is_dir():
            os.utime(path, (hour_ago, hour_ago))


@pytest.fixture
def scans(monkeypatch):
    """The folders scanned, in turn."""
    scanned = []
    scan = module._scan

    def counted(root, file):
        scanned.append(root)
        scan(root, file)

    monkeypatch.setattr(module, "_scan", counted)
    return scanned


def test_files_are_sorted_by_class_and_name_without_hidden_ones(cache, root):
    found = manifest(root)
    assert found.classes == ["a", "b"]
    names = [found.name(index) for index in range(len(found))]
    assert names == [b"a/0.jpeg", b"a/deep/er/1.webp", b"b/10.PNG", b"b/2.jpg"]
    assert found.labels.tolist() == [0, 0, 1, 1]
    assert found.path(3) == root / "b" / "2.jpg"


def test_names_that_are_no_text_are_kept(cache, root):
    name = os.fsencode(root) + b"/a/\xff\xfe.jpg"
    with open(name, "wb"):  # noqa: PTH123
        pass
    found = manifest(root)
    assert any(os.fsencode(found.path(index)) == name for index in range(len(found)))


def test_unchanged_folder_is_scanned_once(cache, root, scans):
    first, second = manifest(root), manifest(root)
    assert len(scans) == 1
    assert (first.names == second.names).all()


@pytest.mark.parametrize("change", ["add", "remove", "rename", "deep", "class"])
def test_changed_folder_is_scanned_again(cache, root, scans, change):
    manifest(root)
    deep = root / "a" / "deep" / "er"
    {
        "add": lambda: (root / "b" / "3.jpg").touch(),
        "remove": lambda: (root / "b" / "2.jpg").unlink(),
        "rename": lambda: (root / "b" / "2.jpg").rename(root / "b" / "4.jpg"),
        "deep": lambda: (deep / "2.jpg").touch(),
        "class": lambda: (root / "b").rename(root / "c"),
    }[change]()
    files = {file for file in root.rglob("*") if file.suffix.lower() in module.EXTENSIONS}
    visible = {file for file in files if not file.name.startswith(".")}
    found = manifest(root)
    assert len(scans) == 2
    assert {found.path(index) for index in range(len(found))} == visible


def test_folder_that_changed_just_before_its_scan_is_not_trusted(cache, root, scans):
    os.utime(root / "b")
    manifest(root)
    manifest(root)
    assert len(scans) == 2


def test_mapped_arrays_are_no_copies_and_cannot_be_written(cache, root):
    found = manifest(root)
    for values in (found.labels, found.offsets, found.names, found.hashes):
        assert not values.flags.owndata
        with pytest.raises(ValueError, match="read-only"):
            values[0] = 0
    assert found.hashes.dtype == np.uint32


def test_many_processes_at_once_scan_once(cache, root):
    program = (
        "import sys; from pathlib import Path; from data import manifest as m\n"
        "scan = m._scan\n"
        "m._scan = lambda root, file: (print('scan'), scan(root, file))\n"
        "assert len(m.manifest(Path(sys.argv[1]))) == 4"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", program, str(root)]
    processes = [
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
        for _ in range(4)
    ]
    outputs = [process.communicate()[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * 4
    assert sorted(outputs) == ["", "", "", "scan\n"]


def test_folder_without_classes_and_class_without_images_are_named(cache, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadInput, match="there are no class folders"):
        manifest(tmp_path / "empty")
    (tmp_path / "empty" / "cat").mkdir()
    with pytest.raises(BadInput, match=r"empty/cat: a class folder without an image"):
        manifest(tmp_path / "empty")


def test_link_that_leads_back_is_refused(cache, root):
    (root / "a" / "again").symlink_to(root / "a")
    with pytest.raises(BadInput, match="does a link lead back"):
        manifest(root)


def test_cache_that_cannot_be_written_is_named(root, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(BadInput, match=r"file/lockstep cannot be written to"):
        manifest(root)
