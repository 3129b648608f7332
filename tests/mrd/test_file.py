"""The ISMRMRD file: read slice by slice, left as it is, and refused in one sentence where it is no scan."""

import hashlib
import os
import shutil
import tracemalloc
import weakref
from pathlib import Path

import h5py
import ismrmrd
import numpy as np
import pytest
import torch
from dpmrecon.errors import BadInputError
from dpmrecon.mrd.collect import slices
from dpmrecon.mrd.file import open_scan
from dpmrecon.mrd.flags import LAST_IN_SLICE, NOISE
from dpmrecon.mrd.scan import LINES, Scan

from support.acquisitions import write_lines
from support.hand_made import (
    assert_point,
    average_limits,
    header_xml,
    limits,
    line,
    noise_lines,
    only,
    point_scan,
    samples,
    write_scan,
)
from support.results import replay, report


@pytest.mark.parametrize("announced", ["", average_limits(0), average_limits(7)])
def test_a_file_knows_its_averages(tmp_path, announced):
    lines = [
        line(n, (1 + a) * samples(n, 2, 1), slice=s, average=a) for s in (0, 1) for a in (0, 1, 2) for n in range(33)
    ]
    path = write_scan(tmp_path / "scan.h5", lines, header_xml(extra_limits=announced))
    with open_scan(path) as scan:
        stream = scan.acquisitions()
        items = slices(stream, scan.header, combine_averages=True)
        first = next(items)
        assert next(stream).idx.slice == 1  # the slice left with its last average, not at the end
        assert first.key.slice == 0 and len(list(items)) == 1
        said = any("the header's number of averages" in remark for remark in scan.log.remarks)
        assert said == bool(announced)
    expected = torch.from_numpy((2 * samples(16, 2, 1)).astype(np.complex64))
    torch.testing.assert_close(first.kspace[:, 16], expected)


@pytest.mark.parametrize("vendor", ["GE MEDICAL SYSTEMS", "Philips"])
@pytest.mark.parametrize("name", ["repetition", "contrast"])
def test_a_second_repetition_or_contrast_of_ge_is_none_where_none_came(tmp_path, name, vendor):
    """Of another vendor the scan may have broken off."""
    system = f"<acquisitionSystemInformation><systemVendor>{vendor}</systemVendor></acquisitionSystemInformation>"
    xml = header_xml(extra_limits=limits(name, 1)).replace("<experimental", f"{system}<experimental")
    path = write_scan(tmp_path / "scan.h5", point_scan(3, 4), xml)
    with open_scan(path) as scan:
        whole, *missing = slices(scan.acquisitions(), scan.header)
        said = any(f"announces two {name}s, as GE's converter does" in remark for remark in scan.log.remarks)
    assert_point(whole.kspace, 3, 4)
    assert said == (vendor != "Philips")
    assert [getattr(lost.key, name) for lost in missing] == ([1] if vendor == "Philips" else [])
    for lost in missing:
        assert (
            f"if the scan has one {name}, none is missing (--set encoding.encodingLimits.{name}.maximum=0)"
            in lost.reason
        )


def peak_memory(path, n_slices):
    """Peak of numpy's memory in bytes while a scan with interleaved slices is read; slices given out are released."""
    write_scan(
        path,
        [line(n, samples(n, 1, 1, cols=500), slice=s) for n in range(33) for s in range(n_slices)],
        header_xml(x=500, fov_x=250, recon_x=500, recon_fov_x=250),
    )
    alive = []
    with open_scan(path) as scan:
        tracemalloc.start()
        for item in slices(scan.acquisitions(), scan.header):
            assert not any(one() for one in alive)  # earlier slices are gone
            alive.append(weakref.ref(item))
            del item
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert len(alive) == n_slices
    return peak


def test_memory_grows_with_a_slice_and_not_with_the_scan(tmp_path):
    short, long = peak_memory(tmp_path / "short.h5", 2), peak_memory(tmp_path / "long.h5", 5)
    one_slice = 33 * 3 * 500 * 8
    assert long < short + 0.5 * one_slice


def test_the_file_is_read_slice_by_slice(tmp_path):
    last = (ismrmrd.ACQ_LAST_IN_SLICE,)
    # every flag wrong: lines interleaved over slices and contrasts, LAST_IN_SLICE on the first line, noise at the end
    lines = [
        line(n, samples(n, 1, 1), last if n == 0 else (), slice=s, contrast=c)
        for n in range(33)
        for s in (1, 0)
        for c in (0, 1)
    ]
    lines += noise_lines(np.random.default_rng(0), n=2, n_samples=26)
    with open_scan(write_scan(tmp_path / "scan.h5", lines)) as scan:
        read = list(scan.acquisitions())
        assert scan.n_slices == 4
        items = list(slices(scan.acquisitions(), scan.header))
    assert [bool(a.flags & NOISE) for a in read[:3]] == [True, True, False]
    keys = [(a.idx.contrast, a.idx.slice) for a in read[2:]]
    assert keys == [key for key in [(0, 0), (0, 1), (1, 0), (1, 1)] for _ in range(33)]
    assert [n for n, a in enumerate(read[2:]) if a.flags & LAST_IN_SLICE] == [32, 65, 98, 131]
    np.testing.assert_array_equal(read[2 + 33 + 7].data, lines[0].data * 0 + samples(7, 1, 1).astype(np.complex64))
    assert [(item.key.contrast, item.key.slice) for item in items] == [(0, 0), (0, 1), (1, 0), (1, 1)]


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the process's memory is read from /proc")
def test_opening_a_scan_keeps_none_of_its_samples(simulated_scan):
    def resident() -> int:
        (line,) = [text for text in Path("/proc/self/status").read_text().splitlines() if text.startswith("VmRSS")]
        return 1024 * int(line.split()[1])

    path = simulated_scan(matrix=(128, 128), n_slices=4, n_coils=16)
    sizes = []
    for _ in range(12):
        with open_scan(path):
            pass
        sizes.append(resident())
    assert sizes[-1] - sizes[1] < 2 * path.stat().st_size  # of ten that were opened


def refused(path):
    with pytest.raises(BadInputError) as caught, open_scan(path) as scan:
        list(slices(scan.acquisitions(), scan.header))
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)
    return str(caught.value)


PAIRS = np.dtype([("real", "<f4"), ("imag", "<f4")])


@pytest.mark.parametrize("kind", [np.dtype("<f8"), np.dtype("<c8"), np.dtype("<c16"), PAIRS])
def test_samples_of_another_type_are_numbers_all_the_same(tmp_path, kind):
    """Complex numbers, and pairs of their parts, which h5py and other languages write."""
    lines = point_scan(3, 4)
    xml, plain = header_xml(), write_scan(tmp_path / "plain.h5", lines)
    parts = [("head", ismrmrd.hdf5.acquisition_header_dtype), ("data", h5py.vlen_dtype(kind))]
    records = np.empty(len(lines), parts)
    with h5py.File(plain) as file:
        records["head"] = file["dataset/data"]["head"]
        for number, samples_of in enumerate(file["dataset/data"]["data"]):
            own = samples_of.view(np.complex64) if kind.kind == "c" else samples_of
            records["data"][number] = own.view(kind) if kind == PAIRS else own.astype(kind)
    with h5py.File(tmp_path / "scan.h5", "w") as file:
        file.create_dataset("dataset/xml", data=[xml], dtype=h5py.special_dtype(vlen=bytes))
        file.create_dataset("dataset/data", data=records, maxshape=(None,))
    with open_scan(tmp_path / "scan.h5") as scan:
        assert_point(only(slices(scan.acquisitions(), scan.header)).kspace, 3, 4)


def test_samples_that_are_no_numbers_are_refused(tmp_path):
    lines = point_scan(3, 4)
    odd = np.dtype([("real", "<f4"), ("name", "S3")])
    records = np.empty(33, [("head", ismrmrd.hdf5.acquisition_header_dtype), ("data", h5py.vlen_dtype(odd))])
    with h5py.File(write_scan(tmp_path / "plain.h5", lines)) as file:
        records["head"] = file["dataset/data"]["head"]
    for number in range(33):
        records["data"][number] = np.zeros(5, odd)
    with h5py.File(tmp_path / "scan.h5", "w") as file:
        file.create_dataset("dataset/xml", data=[header_xml()], dtype=h5py.special_dtype(vlen=bytes))
        file.create_dataset("dataset/data", data=records, maxshape=(None,))
    assert "floating-point numbers are needed" in refused(tmp_path / "scan.h5")


def test_a_replay_opens_the_scan_once_and_reads_its_samples_once(simulated_scan, model, tmp_path, monkeypatch):
    opened, read = [], []
    open_file, samples = h5py.File.__init__, Scan._samples

    def counting(self, name, *given, **more):
        opened.append(str(name))
        open_file(self, name, *given, **more)

    def noting(self, group):
        for index, found in samples(self, group):
            read.append(index)
            yield index, found

    monkeypatch.setattr(h5py.File, "__init__", counting)
    monkeypatch.setattr(Scan, "_samples", noting)
    scan = simulated_scan(matrix=(48, 64), n_slices=2)
    assert replay(scan, tmp_path, model) == 0
    assert opened.count(str(scan)) == 1
    with open_scan(scan) as again:
        assert sorted(read) == list(range(len(again.heads)))
    assert report(tmp_path)["scan_sha256"] == hashlib.sha256(scan.read_bytes()).hexdigest()


def test_heads_are_those_that_hdf5_reads_itself(simulated_scan, tmp_path):
    path = simulated_scan(matrix=(48, 64), n_slices=2)
    packed = tmp_path / "packed.h5"
    with h5py.File(path) as source, h5py.File(packed, "w") as target:  # compressed: HDF5 alone can unpack it
        lines = source["dataset/data"]
        target["dataset/xml"] = source["dataset/xml"][()]
        target.create_dataset("dataset/data", data=lines[()], dtype=lines.dtype, chunks=(7,), compression="gzip")
        expected = lines[()]["head"]
    for file in (path, packed):
        with open_scan(file) as scan:
            assert scan.heads.tobytes() == expected.astype(scan.heads.dtype).tobytes()
            assert len(list(scan.acquisitions())) == len(scan.heads)


@pytest.mark.parametrize("kept", [{}, {"chunks": (7, 1)}, {"chunks": (7, 1), "compression": "gzip"}])
def test_a_column_of_lines_is_a_list_of_lines(simulated_scan, tmp_path, kept):
    column, row = tmp_path / "column.h5", tmp_path / "row.h5"
    path = simulated_scan(matrix=(48, 64), n_slices=2)
    with h5py.File(path) as source:
        lines = source["dataset/data"]
        for written, shape, own in ((column, (-1, 1), kept), (row, (1, -1), {})):
            with h5py.File(written, "w") as target:
                target["dataset/xml"] = source["dataset/xml"][()]
                data = lines[()].reshape(shape)
                target.create_dataset("dataset/data", data=data, dtype=lines.dtype, **own)
    with open_scan(path) as one, open_scan(column) as other:
        assert np.array_equal(one.heads, other.heads)
        for line, same in zip(one.acquisitions(), other.acquisitions(), strict=True):
            assert np.array_equal(line.data, same.data)
    with pytest.raises(BadInputError, match=r"has the shape \(1, \d+\): a list of lines"), open_scan(row):
        pass


def test_files_that_are_no_scans(tmp_path):
    assert "does not exist" in refused(tmp_path / "no.h5")
    assert "is a folder" in refused(tmp_path)
    os.mkfifo(tmp_path / "pipe.h5")
    assert "is a pipe or a device" in refused(tmp_path / "pipe.h5")
    (tmp_path / "empty.h5").write_bytes(b"")
    assert "is empty" in refused(tmp_path / "empty.h5")
    (tmp_path / "text.h5").write_text("k-space\n" * 100)
    assert "not an HDF5 file" in refused(tmp_path / "text.h5")

    scan = write_scan(tmp_path / "scan.h5", point_scan(1, 1))
    cut = tmp_path / "cut.h5"
    cut.write_bytes(scan.read_bytes()[:-4000])
    assert "truncated" in refused(cut)
    hollow = tmp_path / "hollow.h5"  # room was made for the copy, and its end never came
    shutil.copy(scan, hollow)
    with h5py.File(hollow, "r+") as file:
        lines = file["dataset/data"][()]
        lines["head"][20:] = np.zeros(1, lines["head"].dtype)
        file["dataset/data"][...] = lines
    assert f"{len(lines) - 20} of {len(lines)} lines, from line 21 on, have not even a head" in refused(hollow)

    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["measurements"] = 1
    assert "this file holds: measurements" in refused(tmp_path / "other.h5")
    headless = shutil.copy(scan, tmp_path / "headless.h5")
    with h5py.File(headless, "a") as file:
        del file["dataset/xml"]
    assert "no 'xml' header" in refused(tmp_path / "headless.h5")
    assert "no acquisitions" in refused(write_scan(tmp_path / "lineless.h5", []))
    assert "XML header cannot be read" in refused(write_scan(tmp_path / "xml.h5", point_scan(1, 1), "<a>"))
    with ismrmrd.Dataset(str(tmp_path / "numbers.h5"), "dataset", create_if_needed=True) as dataset:
        dataset.write_xml_header(header_xml().encode())
        dataset._dataset["data"] = np.ones(4)
    assert "of another format" in refused(tmp_path / "numbers.h5")
    with h5py.File(tmp_path / "numbers.h5", "a") as file:
        del file["dataset/data"]
        file.create_dataset("dataset/data", data=np.ones((4, 8)), chunks=(1, 8))
    assert "of another format" in refused(tmp_path / "numbers.h5")

    with h5py.File(scan, "r+") as file:  # a line that lost half of its samples
        broken = file["dataset/data"][3]
        broken["data"] = broken["data"][:60]
        file["dataset/data"][3] = broken
    assert "line 4 holds 30 samples where its header announces 3 channels of 26" in refused(scan)


def test_a_second_scan_in_the_file_is_named(tmp_path):
    scan = write_scan(tmp_path / "scan.h5", point_scan(1, 1))
    write_lines(scan, header_xml(), noise_lines(np.random.default_rng(0)), "noise")
    with open_scan(scan) as opened:
        assert not any("another scan" in remark for remark in opened.log.remarks)
    write_lines(scan, header_xml(), point_scan(2, 2), "second")
    said = "the file holds another scan in second: that in dataset is taken, as long as --group names no other"
    with open_scan(scan) as opened:
        assert said in opened.log.remarks
    with open_scan(scan, group="dataset") as opened:
        assert said not in opened.log.remarks


def test_reading_leaves_the_file_alone(tmp_path):
    path = write_scan(tmp_path / "scan.h5", point_scan(3, 4))
    before = path.read_bytes()
    path.chmod(0o444)
    with open_scan(path) as scan:
        assert_point(only(slices(scan.acquisitions(), scan.header)).kspace, 3, 4)
    assert path.read_bytes() == before


def test_lines_that_lie_scattered_are_read_as_they_are(simulated_scan, tmp_path):
    """Slices that were acquired in turn; more lines than are read at once, and no multiple of it."""
    source = ismrmrd.Dataset(
        str(simulated_scan(matrix=(75, 71), n_slices=3, acceleration=1)), "dataset", create_if_needed=False
    )
    lines = [source.read_acquisition(number) for number in range(source.number_of_acquisitions())]
    path = tmp_path / "interleaved.h5"
    target = ismrmrd.Dataset(str(path))
    target.write_xml_header(source.read_xml_header())
    lines.sort(key=lambda line: (not line.is_flag_set(ismrmrd.ACQ_IS_NOISE_MEASUREMENT), line.idx.kspace_encode_step_1))
    for one in lines:
        target.append_acquisition(one)
    target.close()
    source.close()

    def place(line):
        return line.is_flag_set(ismrmrd.ACQ_IS_NOISE_MEASUREMENT), line.idx.slice, line.idx.kspace_encode_step_1

    with open_scan(path) as scan:
        assert any(len(group) % LINES and len(group) > LINES for group in scan.groups)
        assert all(np.diff(group).max() > 1 for group in scan.groups)
        found = {place(line): line.data for line in scan.acquisitions()}
    expected = {place(line): line.data for line in lines}
    assert found.keys() == expected.keys()
    assert all(np.array_equal(found[key], expected[key]) for key in expected)
