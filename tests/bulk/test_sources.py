"""Which files are scans, and what their results are called."""

import os
import zipfile

import h5py
import pytest
from dpmrecon.bulk.sources import anonymous, listed
from dpmrecon.errors import BadInputError

from support.results import replay


@pytest.fixture
def archive(tmp_path):
    for name in (
        "a/one.h5",
        "a/two.MRD",
        "a/b/one.hdf5",
        "a/.hidden.h5",
        ".trash/one.h5",
        "notes.txt",
        "out/scan/x.h5",
    ):
        path = tmp_path / "archive" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    return tmp_path / "archive"


def test_scans_are_found_at_any_depth_and_not_among_the_results(archive):
    found = listed([str(archive)], archive / "out")
    assert sorted(found) == ["a__b__one", "a__one", "a__two"]
    assert found["a__two"].where == str(archive / "a/two.MRD")
    assert found["a__two"].size == len("a/two.MRD")


def test_results_of_a_replay_are_no_scans(archive, simulated_scan, model, tmp_path):
    assert replay(simulated_scan(), archive / "a/results", model) == 0
    (archive / "a/images.h5").write_text("a scan that is called so")
    (archive / "a/b/images.h5").write_text("another")
    (archive / "a/b/report.json").write_text("{}")
    with h5py.File(archive / "a/b/images.h5", "w"):
        pass
    found = listed([str(archive)], archive / "out")
    assert sorted(found) == ["a__b__images", "a__b__one", "a__images", "a__one", "a__two"]


def test_equal_names_are_told_apart_and_stay_as_they_are(archive, tmp_path):
    (archive / "a/one.mrd").write_text("another")
    found = listed([str(archive)], tmp_path / "out")
    ones = sorted(name for name in found if name.startswith("a__one"))
    assert len(ones) == 2 and all(name.startswith("a__one-") for name in ones)
    assert sorted(listed([str(archive)], tmp_path / "out")) == sorted(found)
    again = listed([str(archive / "a"), str(archive / "a/two.MRD"), str(archive)], tmp_path / "out")
    assert sorted(name for name in again if "two" in name) == ["a__two"]  # a scan is done once


@pytest.mark.parametrize("letter", ["x", "脳"])
def test_names_are_as_long_as_a_file_system_takes(archive, letter):
    scan = archive / (60 * letter) / (60 * letter + ".h5")
    scan.parent.mkdir()
    scan.write_text("a scan")
    (name,) = (name for name in listed([str(archive)], archive / "out") if name.startswith(letter))
    (archive / "out" / f"host-12345-{name}").mkdir()


def test_linked_folders_are_walked_once(archive, tmp_path):
    elsewhere = tmp_path / "volume"
    elsewhere.mkdir()
    (elsewhere / "three.h5").write_text("three")
    (archive / "a/linked").symlink_to(elsewhere)
    (archive / "a/b/back").symlink_to(archive)
    (archive / "0_again").symlink_to(archive / "a")  # its own name is the one that counts
    (archive / "results").symlink_to(archive / "out")
    found = listed([str(archive)], archive / "out")
    assert sorted(found) == ["a__b__one", "a__linked__three", "a__one", "a__two"]


def test_a_pipe_is_no_scan(archive, tmp_path):
    before = listed([str(archive)], tmp_path / "out")
    os.mkfifo(archive / "pipe.h5")
    assert listed([str(archive)], tmp_path / "out").keys() == before.keys()


def test_several_folders_go_before_the_names(archive, tmp_path):
    found = listed([str(archive / "a/b"), str(archive / "a/one.h5")], tmp_path / "out")
    assert sorted(found) == ["b__one", "one"]


def test_a_stamp_changes_with_the_file(archive, tmp_path):
    before = listed([str(archive)], tmp_path / "out")["a__one"].stamp
    assert listed([str(archive)], tmp_path / "out")["a__one"].stamp == before
    (archive / "a/one.h5").write_text("changed")
    assert listed([str(archive)], tmp_path / "out")["a__one"].stamp != before


def test_an_address_has_the_same_names_and_its_scans_can_be_had(archive, tmp_path):
    pytest.importorskip("fsspec", reason="fsspec is not installed: pip install -e .[bulk]")
    packed = tmp_path / "archive.zip"
    with zipfile.ZipFile(packed, "w") as file:
        for path in archive.rglob("*"):
            file.write(path, path.relative_to(archive))
    found = listed([f"zip://::{packed}"], tmp_path / "out")
    assert sorted(found) == ["a__b__one", "a__one", "a__two", "out__scan__x"]
    with found["a__two"].local() as path:
        assert path.name == "two.MRD" and path.read_text() == "a/two.MRD"
    assert not path.exists()
    assert len({source.stamp for source in found.values()}) == 4
    (one,) = listed([f"file://{archive}/a/one.h5"], tmp_path / "out").items()
    assert one[0] == "one" and one[1].where == f"file://{archive}/a/one.h5"
    (archive / "a/one.h5").unlink()
    with pytest.raises(BadInputError, match="cannot be fetched"), one[1].local():
        pass


def test_anonymous_names_tell_nothing_and_need_the_key(archive, tmp_path):
    found = listed([str(archive)], tmp_path / "out")
    hidden = anonymous(found, b"key")
    assert list(hidden.values()) == list(found.values())
    assert not any("one" in name or "two" in name for name in hidden)
    assert sorted(anonymous(found, b"key")) == sorted(hidden)
    assert not set(anonymous(found, b"other")) & set(hidden)


@pytest.mark.parametrize(
    ("given", "words"),
    [("nowhere", "nowhere does not exist"), ("empty", "holds no scan"), ("none://x", "none://x cannot be opened")],
)
def test_what_cannot_be_listed_is_one_sentence(given, words, tmp_path, monkeypatch):
    pytest.importorskip("fsspec", reason="fsspec is not installed: pip install -e .[bulk]")
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadInputError, match=words):
        listed([given], tmp_path / "out")
