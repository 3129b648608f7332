"""Both commands: their help shows an example; an empty folder and Ctrl-C are told."""

import os
import signal

import pytest
from dpmrecon.cli import main


def test_both_commands_show_an_example(capsys):
    from dpmtrain import cli

    for command in (main, cli.main):
        with pytest.raises(SystemExit):
            command(["replay" if command is main else "sweep", "--help"])
        assert "example:\n  dpm" in capsys.readouterr().out


@pytest.mark.parametrize("command", [["replay", "scan.h5"], ["protocol", "scan.h5"], ["bulk", "."], ["selftest"]])
def test_an_empty_folder_is_not_the_one_we_are_in(command, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        main([*command, "--out", ""])
    assert stopped.value.code == 2 and list(tmp_path.iterdir()) == []
    assert "argument --out: it is empty: name a folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "place", "words"),
    [
        (
            ["replay", "scan.h5", "--out", "out"],
            "dpmrecon.mrd.receiving.open_as",
            "; the slices finished so far are kept",
        ),
        (["doctor", "scan.h5"], "dpmrecon.tools.doctor.doctor", ""),
    ],
)
def test_an_interrupted_command_says_what_is_kept(command, place, words, monkeypatch, capsys):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(place, interrupted)
    assert main(command) == 130
    assert capsys.readouterr().err == f"dpmrecon: interrupted{words}\n"


def test_a_sigterm_is_told_as_ctrl_c_is(monkeypatch, capsys):
    def ended(*_, **__):
        os.kill(os.getpid(), signal.SIGTERM)
        signal.pause()

    monkeypatch.setattr("dpmrecon.mrd.receiving.open_as", ended)
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        assert main(["replay", "scan.h5", "--out", "out"]) == 130
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGTERM, before)
    assert capsys.readouterr().err == "dpmrecon: interrupted; the slices finished so far are kept\n"
