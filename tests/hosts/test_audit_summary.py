"""`dpmrecon audit`: the audit lines by protocol and week, and what has drifted."""

import json

import pytest
from dpmrecon.cli import main
from dpmrecon.hosts.audit import AuditLog
from dpmrecon.hosts.audit_summary import drifts, weeks_of

from support.sessions import exchange
from support.streams import IDENTIFIER, planted, raw_stream


def line(day: str, *, slices=20, fallbacks=0, cautions=0, residual=1.0, seconds=30.0, sha="a" * 64, **more) -> dict:
    return {
        "time": f"2026-03-{day}T08:00:00Z", "contrast": "flair", "header": {"sha256": sha, "R": 4}, "slices": slices,
        "fallbacks": fallbacks, "missing": 0, "residuals": [residual] * slices, "seconds": {"total": seconds},
        "verdicts": {"trusted": slices - cautions, "caution": cautions}, "error": None, **more,
    }  # fmt: skip


def written(path, *records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def test_protocols_and_weeks_are_apart(tmp_path):
    # a Sunday and the Monday after it; another acquisition; one that an older version wrote
    old = line("01", sha="b" * 64)
    del old["verdicts"]
    log = written(tmp_path / "log", line("01"), line("02", cautions=3), line("02", fallbacks=2), old)
    sunday, monday, other = weeks_of([log])
    assert [week.week for week in (sunday, monday, other)] == ["2026-W09", "2026-W10", "2026-W09"]
    assert (sunday.scans, monday.scans, monday.slices) == (1, 2, 40)
    assert (monday.cautions, monday.fallbacks, other.cautions) == (3, 2, 0)
    assert sunday.protocol == "flair, R 4, aaaaaaaa" and sunday.as_json()["seconds a slice"] == 1.5


def test_what_was_put_aside_is_read_too(tmp_path):
    log = written(tmp_path / "log", line("20"))
    written(tmp_path / "log.1", line("10"))
    written(tmp_path / "log.2", line("03"))
    assert [week.week for week in weeks_of([log])] == ["2026-W10", "2026-W11", "2026-W12"]
    every = weeks_of(sorted(tmp_path.iterdir()))  # as a shell has it for log*
    assert [(week.week, week.scans) for week in every] == [("2026-W10", 1), ("2026-W11", 1), ("2026-W12", 1)]


def test_drift_is_told_and_chance_is_not(tmp_path):
    steady = [line(day, cautions=n) for day, n in (("03", 1), ("10", 0), ("17", 1))]
    assert drifts(weeks_of([written(tmp_path / "steady", *steady)])) == []
    worse = written(tmp_path / "worse", *steady[:2], line("17", cautions=9, residual=1.2, seconds=60.0))
    flagged, residual, seconds = drifts(weeks_of([worse]))
    assert "45% of the slices of 2026-W12" in flagged and "2% before" in flagged
    assert "residual of 2026-W12 is 1.20, 1.00 before" in residual and "3.00, 1.50 before" in seconds
    # one week alone, and a week of errors without slices, have nothing to be compared
    alone = written(tmp_path / "alone", line("03", cautions=20), line("10", slices=0, residuals=[], error="broken"))
    assert drifts(weeks_of([alone])) == []


def test_lines_of_a_session_are_read(start, scan, tmp_path, capsys):
    log = AuditLog(tmp_path / "audit.jsonl")
    exchange(start(audit=log), *raw_stream(scan, xml=planted))
    assert main(["audit", str(log.path), "--json"]) == 0
    told = capsys.readouterr().out
    (week,) = json.loads(told)["weeks"]
    assert (week["scans"], week["slices"], week["errors"]) == (1, 2, 0) and week["residual"] > 0
    assert IDENTIFIER.decode() not in told
    assert main(["audit", str(log.path)]) == 0
    assert "not trusted" in capsys.readouterr().out.splitlines()[0]


@pytest.mark.parametrize("kept", [0, 1, 5, 90, -1, None])
def test_a_line_that_was_cut_off_costs_its_own_scan_alone(tmp_path, capsys, kept):
    path, half = tmp_path / "log", json.dumps(line("03"))[:kept]
    glued = (
        f"{json.dumps(line('02'))}\n{half}{json.dumps(line('10'))}\n" + "\0" * 9 + f"{json.dumps(line('11'))}\n{half}"
    )
    path.write_text(glued)  # an earlier version wrote behind the half line
    AuditLog(path).write(line("17"))
    assert path.read_text().startswith(glued)
    assert main(["audit", str(path), "--json"]) == 0
    told = capsys.readouterr()
    whole = 2 if kept is None else 0
    assert sum(week["scans"] for week in json.loads(told.out)["weeks"]) == 4 + whole
    lost = 0 if kept in (0, None) else 2
    assert told.err.count("was cut off when it was written") == lost and told.err.count("\n") == lost


@pytest.mark.parametrize("text", ["{}", "no JSON", '{"time": "yesterday"}', "[1]", '{"when": "2026'])
def test_what_is_no_audit_log_is_refused(tmp_path, text, capsys):
    (tmp_path / "log").write_text(f"{json.dumps(line('03'))}\n{text}\n")
    assert main(["audit", str(tmp_path / "log")]) == 2
    assert "line 2 is no audit line" in capsys.readouterr().err
    assert main(["audit", str(tmp_path / "missing")]) == 2
    assert "cannot be read" in capsys.readouterr().err
