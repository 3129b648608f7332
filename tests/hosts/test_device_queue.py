"""The device's queue: its order, what it joins, and that a failure is its own scan's alone."""

import threading
from dataclasses import dataclass, replace

import numpy as np
import pytest
from dpmrecon.data import LostSlice, SliceKey
from dpmrecon.hosts.device_queue import DeviceQueue
from dpmrecon.hosts.engine import SampleRequest
from dpmrecon.mrd.collect import slices
from dpmrecon.mrd.file import open_scan
from dpmrecon.recon import sample
from dpmrecon.recon.plan import sampling_of

from support.held_device import held
from support.sessions import exchange
from support.streams import raw_stream
from support.waiting import LIMIT, until


@dataclass(frozen=True, eq=False)
class Numbers:
    """A request that gives its numbers back and notes them; it joins others of its kind, up to 4 numbers. 0 fails."""

    items: list[int]
    noted: list[list[int]]
    kind: str = "alike"

    def __call__(self):
        self.noted.append(self.items)
        for number in self.items:
            yield number * number // number

    def __eq__(self, other):
        raise AssertionError("slices cannot be compared")

    def with_items(self, items):
        return replace(self, items=items)

    def joined(self, other):
        items = [*self.items, *other.items]
        return self.with_items(items) if self.kind == other.kind and len(items) <= 4 else None


def answers(device: DeviceQueue, requests: list[Numbers]) -> list[object]:
    """Of requests that come one after the other while the device is held: a list each, or what was raised."""
    found: list[object] = [None] * len(requests)

    def ask(place: int, request: Numbers) -> None:
        results = []
        found[place] = results
        try:
            for item in device.run(request):
                results.append(item)
        except ArithmeticError as error:
            found[place] = (results, error)

    with held(device):
        threads = [
            threading.Thread(target=ask, args=(place, request), daemon=True) for place, request in enumerate(requests)
        ]
        for place, thread in enumerate(threads):
            thread.start()
            until(lambda place=place: device.waiting() == place + 1)
    for thread in threads:
        thread.join(LIMIT)
        assert not thread.is_alive()
    return found


@pytest.fixture
def device():
    found = DeviceQueue()
    yield found
    found.close()


def test_requests_keep_their_order_and_raise_for_who_asked(device):
    noted = []
    assert [list(device.run(Numbers([number], noted))) for number in (1, 2, 3)] == [[1], [2], [3]]
    with pytest.raises(ZeroDivisionError):
        list(device.run(Numbers([4, 0, 5], noted)))
    assert list(device.run(Numbers([6], noted))) == [6]
    assert noted == [[1], [2], [3], [4, 0, 5], [6]]


def test_what_waits_is_joined_while_there_is_room_and_each_gets_its_own(device):
    noted = []
    requests = [Numbers(items, noted) for items in ([1, 2], [3], [4, 5], [6])]
    requests.insert(1, Numbers([7], noted, "other"))
    assert answers(device, requests) == [[1, 2], [7], [3], [4, 5], [6]]
    assert noted == [[1, 2, 3, 6], [7], [4, 5]]


def test_a_failure_is_told_to_its_own_scan_alone_and_what_was_done_is_kept(device):
    noted = []
    first, failed, last = answers(device, [Numbers(items, noted) for items in ([1], [2, 0], [3])])
    assert (first, last) == ([1], [3])
    assert failed[0] == [2] and isinstance(failed[1], ZeroDivisionError)
    assert noted == [[1, 2, 0, 3], [0], [3]]


def test_two_scans_are_sampled_at_once_and_get_the_images_of_one_at_a_time(start, scan, simulated_scan, monkeypatch):
    server, groups, draw = start(batch="8"), [], sample.draw

    def noting(group, *rest):
        groups.append([mapped.key.slice for mapped in group])
        return draw(group, *rest)

    monkeypatch.setattr(sample, "draw", noting)
    streams = [raw_stream(scan), raw_stream(simulated_scan(matrix=(48, 64), n_slices=2, seed=1))]
    alone = [exchange(server, *messages) for messages in streams]
    assert all(len(set(group)) == len(group) for group in groups)
    found = [None, None]
    threads = [
        threading.Thread(target=lambda i=i: found.__setitem__(i, exchange(server, *streams[i])), daemon=True)
        for i in (0, 1)
    ]
    with held(server._device):
        for thread in threads:
            thread.start()
        until(lambda: server._device.waiting() == 2)
    for thread in threads:
        thread.join(LIMIT)
    assert any(len(set(group)) < len(group) for group in groups)  # a slice of each scan
    for one, other in zip(alone, found):
        for image, same in zip(one.images, other.images, strict=True):
            wanted = image.data.astype(float)
            assert np.abs(wanted - same.data).max() <= 1e-4 * wanted.max()


def test_only_slices_that_are_sampled_alike_are_joined(engine, scan):
    with open_scan(scan) as opened:
        first, second = slices(opened.acquisitions(), opened.header)
    sampling = replace(sampling_of(engine.defaults, engine.checkpoint, engine.device), batch=4, samples=1)

    def request(*items, contrast="t1", sampling=sampling):
        return SampleRequest(list(items), engine.checkpoint, engine.device, contrast, sampling)

    lost = LostSlice(SliceKey(9), "it is lost")
    one = request(first)
    assert one.joined(request(second, lost)).items == [first, second, lost]
    assert one.joined(request(*[second] * 4)) is None  # no room
    assert one.joined(request(second, contrast="t2")) is None
    assert one.joined(request(second, sampling=replace(sampling, seed=1))) is None
    smaller = replace(second, kspace=second.kspace[:, :-1], mask=second.mask[:-1])
    assert one.joined(request(smaller)) is None
    for own in (replace(sampling, deadline=9.0), replace(sampling, adapt=True)):
        assert request(first, sampling=own).joined(request(second, sampling=own)) is None
