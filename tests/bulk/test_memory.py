"""What scans need of memory, and how much of it there is."""

from dpmrecon import memory
from dpmrecon.bulk.engines import Lost, Processes
from dpmrecon.bulk.memory import SHARE, Measured, Memory
from dpmrecon.bulk.sources import listed
from dpmrecon.memory import free_memory
from dpmrecon.options import Options
from dpmrecon.prior.checkpoint import load_checkpoint


class Asked:
    """An engine of two workers whose measurement is given."""

    workers = 2

    def __init__(self, answer, by_memory=False):
        self.answer, self.by_memory = answer, by_memory

    def ask(self, call):
        return self.answer


def memory_of(scans, tmp_path, model, engine) -> Memory:
    return Memory(listed([str(scan) for scan in scans], tmp_path), Options(), load_checkpoint(model), engine)


def test_a_larger_scan_needs_more_and_a_broken_one_nothing(simulated_scan, model, tmp_path):
    scans = [
        simulated_scan(matrix=size, n_coils=coils) for size, coils in (((40, 36), 6), ((80, 72), 6), ((40, 36), 12))
    ]
    scans.append(simulated_scan(partitions=14))
    (tmp_path / "text.h5").write_text("no scan")
    engine = Processes(2)
    try:
        memory = memory_of([*scans, tmp_path / "text.h5"], tmp_path / "out", model, engine)
        room = memory.room(1e6, devices=1)
    finally:
        engine.close()
    assert memory.remark is None
    assert room == 1e6 - 2 * memory.base and memory.base > 50  # a process with torch in it
    need = {path: memory.need(path.stem) for path in scans}
    assert need[scans[1]] > need[scans[0]] > 0
    assert need[scans[2]] >= need[scans[0]]
    assert need[scans[3]] > 0
    assert memory.need("text") == 0


def test_room_is_a_share_of_what_is_free(simulated_scan, model, tmp_path):
    scan = simulated_scan(partitions=14)
    memory = memory_of([scan], tmp_path, model, Asked(Measured(free=1000.0, base=100.0, slices=None)))
    assert memory.room(None, devices=1) == SHARE * 1000 - 200
    assert memory.room(None, devices=2) == SHARE * 2000 - 200
    assert memory.room(500.0, devices=1) == 300


def test_an_engine_that_sees_to_memory_hears_of_the_process_too(simulated_scan, model, tmp_path):
    scan = simulated_scan(partitions=14)
    found = Measured(free=1000.0, base=100.0, slices=None)
    own, whole = (memory_of([scan], tmp_path, model, Asked(found, by_memory)) for by_memory in (False, True))
    assert own.room(None, devices=1) == whole.room(None, devices=1)
    assert whole.need(scan.stem) == own.need(scan.stem) + 100 > 100


def test_where_memory_cannot_be_measured_scans_go_one_by_one(simulated_scan, model, tmp_path):
    scan = simulated_scan(matrix=(40, 36))
    memory = memory_of([scan], tmp_path, model, Asked(Lost("signal 9")))
    assert memory.room(None, devices=1) == 0
    assert memory.need(scan.stem) == 0
    assert memory.remark == "memory could not be measured, its process ended (signal 9): one scan at a time"


def test_some_memory_is_free_and_not_more_than_there_is():
    with open("/proc/meminfo") as file:
        total = int(file.readline().split()[1]) * 1024 / 1e6
    assert 0 < free_memory() / 1e6 <= total


def test_memory_that_a_container_holds_of_files_is_free(monkeypatch):
    files = {
        "/proc/meminfo": "MemTotal: 9000 kB\nMemAvailable:    8000 kB\n",
        "/sys/fs/cgroup/memory.max": "5000000\n",
        "/sys/fs/cgroup/memory.current": "4900000\n",
        "/sys/fs/cgroup/memory.stat": "anon 600000\ninactive_file 2000000\nactive_file 1000000\nshmem 7\n",
    }
    monkeypatch.setattr(memory.Path, "read_text", lambda path: files[str(path)])
    assert free_memory() == 3_100_000
    files["/sys/fs/cgroup/memory.max"] = "max\n"
    assert free_memory() == 8000 * 1024
