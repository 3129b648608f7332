"""Files that are written whole or not at all, and JSON that others wrote."""

import os

import pytest
from dpmrecon.cli import main
from dpmrecon.errors import BadInputError, CheckpointError, DpmreconError
from dpmrecon.files import from_json, replacing
from dpmrecon.hosts.adapters import _parameters
from dpmrecon.hosts.parameters import parameters_of
from dpmrecon.prior.checkpoint import load_checkpoint
from dpmtrain.files import write_text


def test_what_fails_half_way_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "card.json"
    path.write_text("old")
    with pytest.raises(OSError, match="no space"), replacing(path) as part:
        part.write_text("half")
        assert path.read_text() == "old"
        raise OSError("no space")
    assert [file.name for file in tmp_path.iterdir()] == ["card.json"] and path.read_text() == "old"
    with replacing(path) as part:
        part.write_text("new")
    assert [file.name for file in tmp_path.iterdir()] == ["card.json"] and path.read_text() == "new"


def test_a_pipe_stays_a_pipe(tmp_path):
    reader, writer = os.pipe()
    pipe = tmp_path / "pipe"
    pipe.symlink_to(f"/proc/self/fd/{writer}")
    with replacing(pipe) as part:
        part.write_text("page")
    assert pipe.is_fifo() and os.read(reader, 9) == b"page"
    os.close(reader)
    os.close(writer)


def test_a_folder_is_made_and_a_place_that_cannot_be_written_is_one_sentence(tmp_path):
    write_text(tmp_path / "out" / "table.md", "µ\r\n")
    assert (tmp_path / "out" / "table.md").read_bytes() == "µ\r\n".encode()
    (tmp_path / "file").write_text("")
    with pytest.raises(DpmreconError, match="cannot be written .*: what is done stays"):
        write_text(tmp_path / "file" / "table.md", "text")


@pytest.mark.parametrize("text", ["[" * 99999, '{"a": ' * 99999])
def test_json_that_is_nested_without_end_is_told_in_a_sentence(tmp_path, capsys, text):
    with pytest.raises(ValueError, match="nested too deeply"):
        from_json(text)
    assert parameters_of(text.encode()) == (None, {})
    with pytest.raises(BadInputError, match="no JSON object of options"):
        _parameters(text)
    (tmp_path / "m.json").write_text(text)
    (tmp_path / "m.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match="is not a dpmrecon card"):
        load_checkpoint(tmp_path / "m.safetensors")
    (tmp_path / "report.json").write_text(text)
    assert main(["compare", str(tmp_path), "--out", str(tmp_path / "page.html")]) == 2
    assert "report.json is no report of a replay" in capsys.readouterr().err
