"""Workers: what they answer, what becomes of a call whose worker ends, and how many are in hand."""

import multiprocessing
import os
import signal

import pytest
from dpmrecon.bulk.engines import ATTEMPTS, Cluster, Lost, Processes, answers
from dpmrecon.errors import BadInputError


class Recorded:
    """An engine that does calls in this process when it is asked for an answer, and keeps what was in hand."""

    by_memory = False

    def __init__(self, workers: int):
        self.workers, self.running, self.together = workers, {}, []

    def submit(self, name, call, megabytes):
        self.running[name] = call
        self.together.append(set(self.running))

    def finished(self):
        name = next(iter(self.running))
        function, arguments = self.running.pop(name)
        return name, function(*arguments)


def test_a_cluster_that_is_not_there_is_one_sentence():
    """First, while no other cluster runs."""
    pytest.importorskip("ray", reason="Ray is not installed: pip install -e .[bulk]")
    with pytest.raises(BadInputError, match="the Ray cluster auto cannot be reached"):
        Cluster("auto", None)


@pytest.fixture(scope="module", params=["processes", "ray"])
def engine(request):
    if request.param == "ray":
        pytest.importorskip("ray", reason="Ray is not installed: pip install -e .[bulk]")
    found = Processes(2) if request.param == "processes" else Cluster("local", 2)
    yield found
    found.close()


def test_answers_come_with_their_names(engine):
    calls = {f"call {n}": (divmod, (17, n)) for n in range(1, 8)}
    assert dict(answers(engine, calls)) == {f"call {n}": divmod(17, n) for n in range(1, 8)}


def test_a_call_whose_worker_ends_is_made_again(engine, tmp_path):
    mark = tmp_path / "mark"
    calls = {"always": (_end, (tmp_path / "always", 99)), "once": (_end, (mark, 1)), "never": (divmod, (7, 2))}
    found = dict(answers(engine, calls))
    assert found["never"] == (3, 1) and found["once"] == "lived"
    assert isinstance(found["always"], Lost) and found["always"].reason
    assert len((tmp_path / "always").read_text()) == ATTEMPTS
    assert len(mark.read_text()) == 2


def _end(mark, times):
    """End this process without a word at its first `times` calls, which are counted in the file `mark`."""
    with mark.open("a") as file:
        file.write("x")
    if len(mark.read_text()) <= times:
        os.kill(os.getpid(), signal.SIGKILL)
    return "lived"


def test_the_end_of_a_process_is_told_by_its_signal():
    engine = Processes(1)
    try:
        assert engine.ask((divmod, (7, 2))) == (3, 1)
        engine.submit("exit", (os._exit, (7,)), 0)
        assert engine.finished() == ("exit", Lost("exit code 7"))
    finally:
        engine.close()


def test_what_is_in_hand_fits_into_memory():
    engine = Recorded(3)
    need = {"a": 60.0, "b": 50.0, "c": 30.0, "large": 500.0, "d": 10.0, "e": 10.0, "f": 80.0}
    calls = {name: (len, (name,)) for name in need}
    found = dict(answers(engine, calls, need.__getitem__, room=100.0))
    assert found == {name: len(name) for name in need}
    assert all(sum(need[name] for name in together) <= 100 or together == {"large"} for together in engine.together)
    assert {"b", "c"} in engine.together  # and not one by one


def test_no_more_are_in_hand_than_there_are_workers():
    engine = Recorded(3)
    dict(answers(engine, {str(n): (len, ("",)) for n in range(10)}))
    assert max(map(len, engine.together)) == 3


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # of threads: see support/forked.py
def test_processes_take_turns_on_the_gpus(monkeypatch):
    monkeypatch.setattr("dpmrecon.bulk.engines._CONTEXT", multiprocessing.get_context("fork"))  # a start takes 1 s
    engine = Processes(4, ("0", "3"))
    try:
        for number in range(4):
            engine.submit(str(number), (_gpu_when_all_are_there, ()), 0)
        found = sorted(engine.finished()[1] for _ in range(4))
    finally:
        engine.close()
    assert found == ["0", "0", "3", "3"]


def _gpu_when_all_are_there():
    return os.environ["CUDA_VISIBLE_DEVICES"]
