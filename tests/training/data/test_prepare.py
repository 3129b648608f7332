"""`dpmtrain prepare`: every kind of file comes back as what it holds; faults are named; nothing done is lost."""

import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import h5py
import nibabel
import numpy as np
import pydicom
import pytest
import torch
from dpmrecon.mrd.collect import slices
from dpmrecon.mrd.file import open_scan
from dpmrecon.physics.fourier import crop_or_pad, to_kspace
from dpmrecon.physics.scale import image_scale
from dpmrecon.recon.prepare import with_maps
from dpmrecon.simulation.simulate import truth_path
from dpmtrain.cli import main
from dpmtrain.data import images, items, kinds, labelmaps, lesions, painted_foci
from dpmtrain.data.dataset import OBLONG_RATIO, Cut, PreparedSlices, _cut, _matrix, affine, coarser
from dpmtrain.data.open_sets import HELD_OUT
from dpmtrain.data.veins import veins
from dpmtrain.evaluate.references import measured_slices
from pydicom.dataset import Dataset, FileMetaDataset

from support.forked import forked
from support.nifti import dcm2niix
from support.paths import shared
from support.results import replay
from support.waiting import until

FASTMRI_HEADER = """<?xml version="1.0" encoding="UTF-8"?>
<ismrmrdHeader xmlns="http://www.ismrm.org/ISMRMRD">
<experimentalConditions><H1resonanceFrequency_Hz>63646156</H1resonanceFrequency_Hz></experimentalConditions>
<encoding>
<encodedSpace><matrixSize><x>74</x><y>53</y><z>1</z></matrixSize>
<fieldOfView_mm><x>370</x><y>265</y><z>7.5</z></fieldOfView_mm></encodedSpace>
<reconSpace><matrixSize><x>37</x><y>45</y><z>1</z></matrixSize>
<fieldOfView_mm><x>185</x><y>225</y><z>5</z></fieldOfView_mm></reconSpace>
<encodingLimits><kspace_encoding_step_1><minimum>0</minimum><maximum>52</maximum><center>26</center>
</kspace_encoding_step_1></encodingLimits>
<trajectory>cartesian</trajectory>
</encoding></ismrmrdHeader>"""


def run(*arguments) -> int:
    return main(["prepare", *map(str, arguments), "--jobs", "1"])


def volumes(folder) -> dict[str, dict]:
    found = json.loads((folder / "manifest.json").read_text())["volumes"]
    return {volume["file"].removesuffix(".npy"): volume for volume in found}


def magnitude(folder, name) -> np.ndarray:
    slices = np.load(folder / f"{name}.npy").astype(np.float32)
    return np.hypot(slices[..., 0], slices[..., 1]) if slices.ndim == 4 else slices


def misfit(image, truth) -> float:
    factor = (image * truth).sum() / (image**2).sum()
    return float(np.linalg.norm(factor * image - truth) / np.linalg.norm(truth))


def blob(shape, centre, width=1.0) -> np.ndarray:
    grid = np.meshgrid(*[np.arange(size) - c for size, c in zip(shape, centre)], indexing="ij")
    return np.exp(-0.5 * sum(g**2 for g in grid) / width**2)


def head(shape, marker) -> np.ndarray:
    """A soft ellipse with a bright blob at `marker`."""
    radius = np.sqrt(sum(((np.arange(s) - s // 2) / (0.36 * s)).reshape(-1, *[1] * (len(shape) - 1 - k)) ** 2
                         for k, s in enumerate(shape)))  # fmt: skip
    return 1 / (1 + np.exp(12 * (radius - 1))) + 1.5 * blob(shape, marker, 1.2)


def nifti(path, volume, affine_matrix=None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(
        nibabel.Nifti1Image(volume, np.diag([-1.0, -1, 4, 1]) if affine_matrix is None else affine_matrix), path
    )
    return path


def flair(path, seed=0) -> Path:
    """A small NIfTI volume."""
    stack = [head((40, 36), (12 + k + seed % 5, 20)) for k in range(3)]
    return nifti(path, np.stack(stack, -1).astype(np.float32))


def label_map(path=None) -> np.ndarray:
    labels = np.zeros((52, 48, 44), np.int16)
    labels[3:49, 3:45, 3:41] = 507
    labels[7:45, 7:41, 7:37] = 3
    labels[10:42, 10:38, 10:34] = 2
    labels[22:28, 14:34, 18:26] = 4
    labels[8:44, 22:25, 35:37] = 514  # a sinus
    if path is not None:
        nifti(path, labels, np.array([[0, 0, 1, 0], [1, 0, 0, 0], [0, -1, 0, 0], [0, 0, 0, 1.0]]))
    return labels


def fastmri(path, patient="7f31", seed=0, **changes):
    """A file of the real one's shape. Returns magnitudes (slices, 45, 37) as whitened coils see them, the factor that
    whitening makes (45, 37), and the markers."""
    rng = np.random.default_rng(seed)
    n_slices, n_coils, rows, cols, noise = 4, 5, 45, 37, 0.01
    markers = [(15 + 3 * k, 24 - 4 * k) for k in range(n_slices)]
    y, x = np.meshgrid(np.linspace(-1, 1, 53), np.linspace(-1, 1, cols), indexing="ij")
    angles = 2 * np.pi * np.arange(n_coils) / n_coils
    coils = np.stack([np.exp(-((y - 1.3 * np.sin(a)) ** 2 + (x - 1.3 * np.cos(a)) ** 2) / 2 + 1j * a) for a in angles])
    coils /= np.sqrt((abs(coils) ** 2).sum(0))
    mixing = np.eye(n_coils) + 0.3 * rng.standard_normal((n_coils, n_coils))
    seen = np.sqrt((abs(np.tensordot(np.linalg.inv(mixing), coils, 1)) ** 2).sum(0))  # whitened coils together
    truth, kspace = [], []
    for marker in markers:
        image = crop_or_pad(torch.from_numpy(head((rows, cols), marker)), 53, 0).numpy() * np.exp(1j * (2 * x + y**2))
        full = crop_or_pad(torch.from_numpy(coils * image), 2 * cols, -1)
        white = rng.standard_normal((n_coils, 53, 2 * cols, 2)) @ [1, 1j] * noise
        kspace.append(to_kspace(full).numpy() + np.tensordot(mixing, white, 1))
        truth.append((abs(image) * seen)[4:49])
    kspace = np.stack(kspace).swapaxes(-1, -2).astype(np.complex64)  # (slices, coils, readout, lines)
    with h5py.File(path, "w") as file:
        file["kspace"] = changes.get("kspace", lambda full: full)(kspace)
        file["ismrmrd_header"] = FASTMRI_HEADER.encode()
        file["reconstruction_rss"] = np.zeros((n_slices, cols, cols), np.float32)
        file.attrs.update({"acquisition": "AXFLAIR", "patient_id": patient, "max": 1.0, "norm": 1.0})
        if "mask" in changes:
            file["mask"] = changes["mask"]
    return np.stack(truth), seen[4:49], markers


def test_fastmri_gives_the_known_object(tmp_path):
    truth, seen, markers = fastmri(tmp_path / "file_brain_AXFLAIR_200.h5")
    assert run(tmp_path / "file_brain_AXFLAIR_200.h5", "--out", tmp_path / "out", "--drop-last", 1) == 0
    ((name, volume),) = volumes(tmp_path / "out").items()
    assert (volume["contrast"], volume["reference"], volume["voxel_mm"]) == ("flair", "fully sampled", [5, 5, 5])
    assert volume["spans"] == [[0, 3]]  # slices whose phases have nothing to do with each other
    assert volume["shape"] == [3, 45, 37]  # 4 slices but the last; lines are rows, the readout's oversampling is gone
    images = magnitude(tmp_path / "out", name)
    for image, expected, marker in zip(images, truth, markers):
        window = np.s_[marker[0] - 3 : marker[0] + 4, marker[1] - 3 : marker[1] + 4]
        assert np.unravel_index(image[window].argmax(), (7, 7)) == (3, 3)
        assert misfit(image, expected) < 0.03
        assert misfit(image, expected / seen) > 0.1  # what coils that were not whitened see
    assert image_scale(torch.from_numpy(images)) == pytest.approx(1, rel=2e-3)
    stored = np.load(tmp_path / "out" / f"{name}.npy")
    assert stored.dtype == np.float16
    assert stored.shape == (3, 45, 37, 2)
    turn = np.angle((stored[0, 22, 1:] @ [1, 1j]) * (stored[0, 22, :-1] @ [1, -1j]))[8:28]
    assert np.median(turn) > 0.03  # the object's phase turns by 2 * 2/36 a pixel, less what the coil maps take


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"mask": np.ones(53)}, "undersampled"),
        ({"kspace": lambda full: full * (np.arange(53) % 4 == 2)}, "fully sampled"),
        ({"kspace": lambda full: full[:, 0]}, r"\(slices, n_coils, readout, lines\)"),
        ({"kspace": lambda full: full[:, :, 1:]}, "73 samples where the header announces 74"),
    ],
)
def test_fastmri_files_that_are_no_references_are_refused(tmp_path, capsys, changes, told):
    fastmri(tmp_path / "scan.h5", **changes)
    assert run(tmp_path, "--out", tmp_path / "out", "--drop-last", 0) == 2
    assert re.search(f"scan.h5: .*{told}", capsys.readouterr().err)
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_a_hospitals_scans_fully_sampled_and_sense(simulated_scan, tmp_path, capsys):
    made = {
        "full": simulated_scan(acceleration=1, calibration="none", matrix=(60, 70), subject=1),
        "half": simulated_scan(acceleration=2, matrix=(60, 70), subject=2),
        "quarter": simulated_scan(acceleration=4, matrix=(60, 70), subject=3),
    }
    for name, path in made.items():
        shutil.copy(path, tmp_path / f"{name}.h5")
    assert run(tmp_path, "--out", tmp_path / "out") == 3
    told = capsys.readouterr()
    assert "quarter.h5: it is accelerated R=4; references need full sampling" in told.err
    found = volumes(tmp_path / "out")
    assert {name: volume["reference"] for name, volume in found.items()} == {
        "full": "fully sampled",
        "half": "SENSE R=2",
    }
    for name, largest in (("full", 0.06), ("half", 0.08)):
        truth = np.load(truth_path(made[name]))
        assert found[name]["shape"] == [1, 60, 70]
        assert misfit(magnitude(tmp_path / "out", name), truth) < largest


def test_a_swi_scan_has_the_support_that_a_reconstruction_has(simulated_scan, tmp_path):
    scan = simulated_scan(contrast="swi", acceleration=1, matrix=(96, 96), n_slices=1)
    with open_scan(scan) as opened:
        (data,) = slices(opened.acquisitions(), opened.header)
    supports = {contrast: with_maps(data, torch.device("cpu"), contrast).model.support for contrast in ("swi", "t2")}
    assert supports["swi"].sum() > supports["t2"].sum()
    for contrast, support in supports.items():
        ((volume,), _) = kinds.read(items.Item("ISMRMRD", "scan", "one", contrast, "own", "none", (scan,)))
        assert np.array_equal(volume.slices[0] != 0, support.numpy() > 0)


def test_shots_with_a_phase_each_are_put_together_as_in_a_reconstruction(simulated_epi):
    scan = simulated_epi(shots=2, acceleration=1, directions_per_b=1)
    with open_scan(scan) as opened:
        mapped = [with_maps(data, torch.device("cpu"), "dwi") for data in slices(opened.acquisitions(), opened.header)]
    volumes, faults = kinds.read(items.Item("ISMRMRD", "scan", "one", "dwi", "own", "none", (scan,)))
    assert not faults and volumes[1].reference == "SENSE of shots with a phase each, fully sampled"
    for volume, wanted in zip(volumes, (mapped[0].zero_filled, mapped[1].conventional)):
        assert np.array_equal(volume.slices[0], wanted.numpy())
    for full, wanted in zip(measured_slices(scan), (mapped[0].zero_filled, mapped[1].conventional)):
        assert np.array_equal(full.truth, full.picture(wanted))


def test_oblique_volumes_come_out_axial_with_the_voxel_in_its_place(tmp_path):
    """A blob 14 mm to the left, 8 mm behind and 6 mm above the centre of a head in tilted, permuted axes."""
    tilt = nibabel.eulerangles.euler2mat(0.1, 0.15, 0.2)
    axes = np.array([[0, 0, -1.0], [1, 0, 0], [0, -1, 0]])  # i to the front, j down, k to the left
    matrix = np.eye(4)
    matrix[:3, :3] = tilt @ axes * [1.0, 5.0, 1.2]
    shape, centre = (45, 9, 37), np.array([22, 4, 18])
    matrix[:3, 3] = -matrix[:3, :3] @ centre
    ijk = np.linalg.solve(matrix[:3, :3], tilt @ [-14, -8, 6]) + centre  # RAS along the tilted axes
    volume = np.stack([head((45, 37), (22, 18)) - 1.5 * blob((45, 37), (22, 18), 1.2)] * 9, 1)
    nifti(tmp_path / "patient5_T2_FLAIR.nii.gz", (volume + 2 * blob(shape, ijk, 1.2)).astype(np.float32), matrix)
    assert run(tmp_path, "--out", tmp_path / "out") == 0
    ((name, entry),) = volumes(tmp_path / "out").items()
    assert (entry["subject"], entry["contrast"], entry["voxel_mm"]) == ("patient5", "flair", [5, 1, 1.2])
    assert entry["shape"] == [9, 45, 37]
    images = magnitude(tmp_path / "out", name)
    # slices upwards: 6 mm are 1.2 slices; rows to the back; columns to the left, 14 mm are 11.7 of them
    assert np.unravel_index(images.argmax(), images.shape) == (5, 30, 30)


def dicom(path, image, position, *, uid="1.2.3", patient="4711", **tags):
    """An oblique MR image; columns run along (1, 0, 0) turned, rows to the back and up."""
    path.parent.mkdir(parents=True, exist_ok=True)
    file = Dataset()
    file.file_meta = FileMetaDataset()
    file.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    file.SOPClassUID, file.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.4", f"{uid}.{sum(path.stem.encode())}"
    file.PatientID, file.SeriesInstanceUID, file.SeriesDescription = patient, uid, "ep2d_diff_b1000"
    file.ImageType, file.InstanceNumber = ["ORIGINAL", "PRIMARY", "M"], 1
    file.ImageOrientationPatient, file.PixelSpacing = [1, 0, 0, 0, 0.8, 0.6], [2.0, 1.5]
    file.ImagePositionPatient = [float(value) for value in position]
    file.Rows, file.Columns = image.shape
    file.SamplesPerPixel, file.PhotometricInterpretation, file.PixelRepresentation = 1, "MONOCHROME2", 0
    file.BitsAllocated, file.BitsStored, file.HighBit = 16, 16, 15
    file.PixelData = (1000 * image).astype(np.uint16).tobytes()
    for name, value in tags.items():
        if name[0].isdigit():
            file.add_new(int(name, 16), "SS", value)
        else:
            setattr(file, name, value)
    file.save_as(path, enforce_file_format=True)


def test_dicom_series_in_order_of_position_whatever_the_files_are_called(tmp_path, capsys):
    normal = np.array([0, -0.6, 0.8])
    for number, place in enumerate((2, 0, 1)):
        image = head((41, 36), (20 + place, 9))
        dicom(tmp_path / "in" / f"IM{number}.dcm", image, 5 * place * normal, DiffusionBValue=1000.0)
        dicom(tmp_path / "in" / f"ADC{number}.dcm", image, 5 * place * normal, ImageType=["DERIVED", "PRIMARY", "ADC"])
    assert run(tmp_path / "in", "--out", tmp_path / "out") == 0
    assert "ADC, which are left out" in capsys.readouterr().err
    ((name, entry),) = volumes(tmp_path / "out").items()
    assert (entry["contrast"], entry["voxel_mm"]) == ("dwi", [5, 2, 1.5])
    assert entry["subject"] == items.pseudonym("4711")
    images = magnitude(tmp_path / "out", name)
    assert [np.unravel_index(image.argmax(), image.shape) for image in images] == [(20, 9), (21, 9), (22, 9)]


@pytest.mark.parametrize(
    ("tags", "told", "code"),
    [
        ({"ImageType": ["ORIGINAL", "PRIMARY", "M", "ND", "MOSAIC"]}, "holds mosaics, many slices in one image", 3),
        ({"Manufacturer": "GE MEDICAL SYSTEMS", "0043102F": 1}, "of the type PHASE, which are left out", 0),
        ({"ComplexImageComponent": "IMAGINARY"}, "of the type IMAGINARY, which are left out", 0),
        ({"ImageType": ["DERIVED", "SECONDARY"], "SeriesDescription": "DWI eADC"}, "of the type eADC", 0),
        ({"ImageType": ["DERIVED", "PRIMARY", "M", "ND", "MNIP"]}, "of the type MNIP", 0),
        ({"Modality": "CT"}, "of the modality CT", 0),
        ({"NumberOfFrames": 2}, "holds multi-frame DICOM files; export them as single-frame", 3),
        ({"SeriesDescription": "T1 map", "ImageType": ["ORIGINAL", "PRIMARY", "M"]}, "of the type T1 map", 0),
        ({"SeriesDescription": "t2_mapping_dwi"}, "", 0),
        ({"PhotometricInterpretation": "MONOCHROME1"}, "largest values are black (MONOCHROME1); export them as", 3),
        (
            {"ImageComments": "RESEARCH: not for diagnostic use; b = 0 s/mm2"},
            "that dpmrecon made, which are left out",
            0,
        ),
        ({"InstanceNumber": None}, "", 0),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "M"], "SeriesDescription": "DWI_ADC"}, "", 0),
        ({"ImageType": ["DERIVED", "PRIMARY", "TRACEW"], "SeriesDescription": "ep2d_diff_TRACEW"}, "", 0),
        ({"Manufacturer": "GE MEDICAL SYSTEMS", "0043102F": 0}, "", 0),
        ({"RescaleIntercept": -500}, "% of its signal is negative: it is a phase image", 3),
    ],
)
def test_dicom_that_is_no_magnitude_of_an_anatomy_is_left_out(tmp_path, capsys, tags, told, code):
    for number in range(3):
        image = head((41, 36), (20 + number, 9))
        dicom(tmp_path / "in" / f"a{number}.dcm", image, (0, -3 * number, 4 * number), uid="1.2.4")
        changed = {"SeriesDescription": "dwi", "Modality": "MR", **tags}
        dicom(tmp_path / "in" / f"b{number}.dcm", image, (0, -3 * number, 4 * number), uid="1.2.5", **changed)
    assert run(tmp_path / "in", "--out", tmp_path / "out") == code
    error = capsys.readouterr().err
    assert told in error
    assert len(volumes(tmp_path / "out")) == (1 if told else 2)


def test_a_dicom_mask_is_refused_as_a_nifti_one_is(tmp_path, capsys):
    for number in range(3):
        mask = head((41, 36), (20 + number, 9)) > 0.5
        dicom(tmp_path / "in" / f"a{number}.dcm", mask.astype(float), (0, -3 * number, 4 * number))
    assert run(tmp_path / "in", "--out", tmp_path / "out") == 2
    assert "its data have only two values: it is a mask, not an image" in capsys.readouterr().err


@pytest.mark.parametrize("folder", ["dicom", "nifti", "dcm2niix"])
def test_a_prior_does_not_learn_from_its_own_images(simulated_scan, model, tmp_path, capsys, folder):
    """Spread, conventional images and copies in other planes among them."""
    scan = simulated_scan(partitions=20, matrix=(26, 24), contrast="flair")
    assert replay(scan, tmp_path / "o", model, "--conventional", "--nifti", "--reformat", "coronal") == 0
    if folder == "dcm2niix":
        dcm2niix(tmp_path / "o" / "dicom", tmp_path / "o" / "dcm2niix")
    flair(tmp_path / "o" / folder / "theirs_flair.nii.gz")
    capsys.readouterr()
    assert run(tmp_path / "o" / folder, "--out", tmp_path / "out", "--contrast", "flair") == 0
    assert list(volumes(tmp_path / "out")) == ["theirs_flair"]
    assert (
        "that dpmrecon made, which are left out: a prior does not learn from its own images" in capsys.readouterr().err
    )


@pytest.mark.parametrize("syntax", [pydicom.uid.ExplicitVRLittleEndian, pydicom.uid.ImplicitVRLittleEndian])
@pytest.mark.parametrize("meta", [True, False])
def test_dicom_without_a_preamble_is_read(tmp_path, syntax, meta):
    for number in range(3):
        path = tmp_path / "in" / f"IM{number}"
        dicom(path, head((41, 36), (20 + number, 9)), (0, -3 * number, 4 * number))
        file = pydicom.dcmread(path)
        file.file_meta.TransferSyntaxUID = syntax
        file.preamble = None
        if not meta:
            file = Dataset(file)
        pydicom.dcmwrite(path, file, implicit_vr=syntax.is_implicit_VR, little_endian=True)
        assert b"DICM" not in path.read_bytes() and images.is_dicom(path)
    others = {"a": b"\x08\x00\x05\x00", "b": b"\x08\x00\x05\x00CT" + bytes(200), "c": b"\x02\x00" + bytes(200)}
    for name, content in {**others, "notes": b"hello " * 40, "empty": b""}.items():
        (tmp_path / "in" / name).write_bytes(content)
    assert run(tmp_path / "in", "--out", tmp_path / "out") == 0
    ((name, _),) = volumes(tmp_path / "out").items()
    found = magnitude(tmp_path / "out", name)
    assert [np.unravel_index(image.argmax(), image.shape) for image in found] == [(20, 9), (21, 9), (22, 9)]


def test_dicom_copies_count_once_and_a_stack_with_a_gap_is_not_cut_across(tmp_path):
    """A copy made a second volume; across a gap training would see a step in the head."""
    for place in [k for k in range(44) if k != 20]:
        image = head((44, 40), (20, 9))
        dicom(tmp_path / "in" / f"{place:02d}.dcm", image, (0, -0.6 * place, 0.8 * place), PixelSpacing=[1.0, 1.0])
    shutil.copytree(tmp_path / "in", tmp_path / "in" / "copy")
    assert run(tmp_path / "in", "--out", tmp_path / "out") == 0
    ((_, entry),) = volumes(tmp_path / "out").items()
    assert entry["shape"] == [43, 44, 40] and len(entry["spans"]) == 1
    dicom(tmp_path / "in" / "20.dcm", head((44, 40), (20, 9)), (0, -12.0, 16.0), PixelSpacing=[1.0, 1.0])
    assert run(tmp_path / "in", "--out", tmp_path / "out") == 0
    ((_, entry),) = volumes(tmp_path / "out").items()
    assert entry["shape"] == [44, 44, 40] and len(entry["spans"]) == 3


@pytest.mark.parametrize("patient", ["ANONYMOUS", "ANON", "", "0000"])
def test_dicom_without_patient_ids_is_told_apart_by_folder_and_study(tmp_path, patient):
    """One subject of all could not be held out; one for each file, or series, would be on both sides."""
    places = [("flat/a{}.dcm", 1), ("flat/b{}.dcm", 2), ("deep/one/t{}.dcm", 3), ("deep/two/t{}.dcm", 4)]
    places += [("deep/two/u{}.dcm", 5), ("deep/more/t{}.dcm", 4)]
    for place, study in places:
        for number in range(2):
            path = tmp_path / place.format(number)
            uid = f"1.2.{len(path.parent.name)}.{ord(path.name[0])}"
            told = {"uid": uid, "patient": patient, "StudyInstanceUID": f"1.9.{study}"}
            dicom(path, head((41, 36), (20, 9)), (0, -3 * number, 4 * number), **told)
    assert run(tmp_path / "flat", "--out", tmp_path / "out", "--contrast", "dwi") == 0
    found = volumes(tmp_path / "out").values()
    assert sorted(v["subject"] for v in found) == sorted(items.pseudonym(f"1.9.{study}") for study in (1, 2))
    assert [v["shape"][0] for v in found] == [2, 2]
    assert run(tmp_path / "deep", "--out", tmp_path / "more", "--contrast", "dwi") == 0
    found = volumes(tmp_path / "more").values()
    assert sorted(v["subject"] for v in found) in (["more"] * 3 + ["one"], ["one"] + ["two"] * 3)


def test_fastmri_files_whose_patient_is_a_placeholder_are_told_apart_by_folder(tmp_path):
    for name in ("one/brain_AXFLAIR_1.h5", "two/brain_AXFLAIR_2.h5"):
        (tmp_path / "in" / name).parent.mkdir(parents=True)
        fastmri(tmp_path / "in" / name, patient="ANONYMOUS")
    assert run(tmp_path / "in", "--out", tmp_path / "out", "--drop-last", 1) == 0
    assert {volume["subject"] for volume in volumes(tmp_path / "out").values()} == {"one", "two"}


def test_real_dicom_in_gzip(tmp_path):
    for path in sorted(shared("images/philips_dwi").glob("IM_00*.gz")):
        (tmp_path / "philips_dwi").mkdir(exist_ok=True)
        shutil.copy(path, tmp_path / "philips_dwi")
    assert run(tmp_path, "--out", tmp_path / "out") == 0
    found = volumes(tmp_path / "out").values()
    assert {(v["contrast"], v["subject"], v["licence"]) for v in found} == {("dwi", "philips_dwi", "BSD-2-Clause")}
    assert {tuple(volume["shape"][1:]) for volume in found} == {(112, 112)}


BRIGHTER = {"acute": {"flair": 1, "dwi_b1000": 1, "dwi_b0": 1, "t2": 1, "t1": -1},
            "chronic": {"flair": -1, "dwi_b1000": -1, "dwi_b0": 1, "t2": 1, "t1": -1}}  # fmt: skip


@pytest.mark.parametrize("tissue", BRIGHTER)
@pytest.mark.parametrize("sequence", BRIGHTER["acute"])
def test_lesions_have_the_sign_that_their_contrast_gives_them(tissue, sequence):
    labels = label_map()
    box = (slice(30, 40), slice(14, 34), slice(18, 26))  # in white matter
    lesion = (tissue, np.ones((10, 20, 8), np.float32), box)
    ratios = []
    for seed in range(6):
        with_it = labelmaps.simulate(labels, sequence, np.random.default_rng(seed), [lesion])
        without = labelmaps.simulate(labels, sequence, np.random.default_rng(seed), [])
        ratios.append(np.log(with_it[box][2:-2, 2:-2, 2:-2].mean() / without[box][2:-2, 2:-2, 2:-2].mean()))
    assert np.mean(ratios) * BRIGHTER[tissue][sequence] > 0.05
    if (tissue, sequence) != ("acute", "t1"):  # which is equally bright at times, as acute infarcts are
        assert (np.sign(ratios) == BRIGHTER[tissue][sequence]).all()


def test_veins_are_dark_and_fat_is_suppressed():
    labels = label_map()
    rng = np.random.default_rng(0)
    swi = labelmaps.simulate(labels, "swi", rng, [])
    assert swi[labels == 514].mean() < 0.6 * swi[labels == 3].mean()
    drawn = veins(labels, np.random.default_rng(1))
    assert 0.5 < drawn.max() <= 1
    assert drawn[labels == 0].max() == 0
    fat = [labelmaps.signal("fat", labelmaps.SEQUENCES[name], rng) for name in ("t2", "dwi_b0")]
    assert fat[1] < 0.3 * fat[0]


def test_random_lesions_stay_in_the_brain():
    labels = label_map()
    for seed in range(20):
        rng = np.random.default_rng(seed)
        for _, fraction, box in lesions.lesions(labels, rng) + lesions.foci(labels, "dwi", rng):
            assert 0 <= fraction.min() <= fraction.max() <= 1
            assert fraction[(labels[box] == 0) | (labels[box] > 500) | (labels[box] == 4)].max(initial=0) == 0


def test_foci_are_small_often_many_and_often_none():
    labels = label_map()
    counts, voxels = [], []
    for seed in range(60):
        painted = lesions.foci(labels, "dwi", np.random.default_rng(seed))
        counts.append(len(painted))
        assert {tissue for tissue, _, _ in painted} <= {"acute"}
        voxels += [int((fraction > 0.1).sum()) for _, fraction, _ in painted]
    assert 3 < counts.count(0) < 25
    assert max(counts) > 100
    assert np.mean(np.array(voxels) <= 4**3) > 0.4  # up to 4 pixels across
    assert max(voxels) > 10**3 / 4


@pytest.mark.parametrize(
    ("sequence", "tissue", "sign"), [("dwi", "acute", 1), ("swi", "bleed", -1), ("gre", "bleed", -1)]
)
def test_a_focus_of_three_pixels_shows(sequence, tissue, sign):
    labels = label_map()
    box = (slice(34, 37), slice(20, 23), slice(20, 23))
    focus = (tissue, np.ones((3, 3, 3), np.float32), box)
    for seed in range(3):
        with_it, without = (
            abs(labelmaps.simulate(labels, sequence, np.random.default_rng(seed), painted)) for painted in ([focus], [])
        )
        assert sign * np.log(with_it[box].mean() / without[box].mean()) > 0.1


def test_b_values_are_drawn_and_a_complex_echo_has_the_phase_of_veins():
    rng = np.random.default_rng(0)
    b_values = [labelmaps.drawn(labelmaps.PREPARED["dwi"], rng).b for _ in range(50)]
    assert 50 <= min(b_values) < 300 and 1000 < max(b_values) <= 1200
    labels = label_map()
    image = labelmaps.simulate(labels, "gre", np.random.default_rng(0), [])
    assert (image.shape, image.dtype) == (labels.shape, np.complex64)
    brain = (labels == 2) | (labels == 3)
    assert np.angle(image[brain] / image[brain].mean()).std() < 2  # shimmed
    steps = np.angle(image[:, 1:] * image[:, :-1].conj())
    assert abs(steps[:, 21:26, 35:37]).max() > 0.5  # at the sinus


def test_thin_slices_are_cut_in_three_directions_and_scaled_by_their_volume(tmp_path):
    """A head at 1 x .8 x .9 mm, brighter upwards, and the same at 3 mm."""
    shape = (54, 58, 64)
    volume = head(shape, (27, 29, 50))
    volume = np.where(volume > 0.3, volume * np.linspace(1, 3, 54)[:, None, None], 0).astype(np.float32)
    for name, step in (("thin_t1", 1.0), ("thick_t1", 3.0)):
        nifti(tmp_path / "in" / f"{name}.nii", volume.transpose(2, 1, 0)[::-1, ::-1], np.diag([0.9, 0.8, step, 1]))
    assert run(tmp_path / "in", "--out", tmp_path / "out") == 0
    found = volumes(tmp_path / "out")
    assert [len(found[name]["spans"]) for name in ("thin_t1", "thick_t1")] == [3, 1]
    thin, stored = found["thin_t1"], np.load(tmp_path / "out" / "thin_t1.npy")
    assert (thin["shape"], thin["voxel_mm"]) == (list(shape), [1.0, 0.8, 0.9])
    assert image_scale(torch.from_numpy(stored)) == pytest.approx(1, rel=2e-3)
    for (first, end), size in zip(thin["spans"], shape):
        assert 0 < first < end < size
    cuts = [_cut(stored, thin, torch.Generator().manual_seed(seed)) for seed in range(60)]
    assert {(tuple(cut.image.shape), cut.pixel_mm) for cut in cuts} == {
        ((58, 64), (0.8, 0.9)), ((54, 64), (1.0, 0.9)), ((54, 58), (1.0, 0.8))
    }  # fmt: skip
    assert 10 < sum(cut.scaled for cut in cuts) < 40
    assert min(float(cut.image.max()) for cut in cuts) < 0.3  # the volume's factor takes planes without a head too
    slices = PreparedSlices(tmp_path / "out", 1.0, ["thin*"])
    scales = [image_scale(slices.example(40, torch.Generator().manual_seed(seed)).image) for seed in range(60)]
    assert min(scales) < 0.5
    assert 0.8 < np.median(scales) < 1.2


def test_pixels_become_coarser_and_oblong_and_values_stay():
    cut = Cut(torch.ones(200, 161), (1.0, 0.9), True, True)
    sizes = np.array([_matrix(cut, 96, torch.Generator().manual_seed(seed)) for seed in range(200)])
    ratios = np.array([200, 161]) / sizes
    oblong = ratios.max(1) / ratios.min(1)
    assert 0.2 < (oblong > 1.4).mean() < 0.5
    assert oblong.max() < OBLONG_RATIO[1] * 1.05
    assert 1.7 < ratios[oblong < 1.3].max() < 2.5  # 2 mm and a tenth from .9 mm
    assert (ratios == 1).all(1).mean() > 0.1
    image = torch.from_numpy(blob((45, 52), (22, 26), 5)).float()
    for size in ((45, 52), (31, 25)):
        small = coarser(image, size)
        assert small.shape == size
        assert float(small.max()) == pytest.approx(1, rel=0.02)
        assert np.unravel_index(int(small.argmax()), size) == (size[0] // 2, size[1] // 2)


def test_a_broken_file_among_good_ones_is_named_and_the_rest_goes_through(tmp_path, capsys):
    flair(tmp_path / "in" / "patient1_flair.nii.gz")
    flair(tmp_path / "in" / "patient2_flair.nii.gz")
    cut = tmp_path / "in" / "patient3_flair.nii.gz"
    cut.write_bytes(flair(cut).read_bytes()[:700])
    flair(tmp_path / "in" / "patient4_unnamed.nii.gz")
    (tmp_path / "in" / "scan.h5").write_bytes(b"no scan")
    (tmp_path / "in" / "notes.txt").write_text("not data")
    nifti(tmp_path / "in" / "patient5_flair.nii", np.zeros((20, 20, 3), np.float32))
    nifti(tmp_path / "in" / "patient1_flair_mask.nii", np.eye(20, dtype=np.uint8)[..., None])
    assert run(tmp_path / "in", "--out", tmp_path / "out") == 3
    told = capsys.readouterr().err
    for line in (
        "patient3_flair.nii.gz: cannot be read",
        "patient4_unnamed.nii.gz: its contrast is not known",
        "scan.h5: is none of fastMRI, ISMRMRD, DICOM and NIfTI, or is damaged",
        "patient5_flair.nii: its 3 slices are empty",
        "patient1_flair_mask.nii: its data have only two values",
    ):
        assert line in told
    assert "notes.txt" not in told
    assert "Traceback" not in told
    assert set(volumes(tmp_path / "out")) == {"patient1_flair", "patient2_flair"}
    assert run(tmp_path / "in", "--out", tmp_path / "out") == 3  # the second run says it again
    assert "patient3_flair.nii.gz: cannot be read" in capsys.readouterr().err
    assert run(cut, "--out", tmp_path / "other") == 2
    assert run(tmp_path / "nowhere", "--out", tmp_path / "other") == 2
    capsys.readouterr()
    with pytest.raises(SystemExit, match="2"):
        run(tmp_path / "in", "--out", tmp_path / "other", "--contrast", "t9")
    assert "choose from 'flair', 't1', 't2', 'dwi', 'swi'" in capsys.readouterr().err


@pytest.mark.parametrize(
    "name",
    [
        "flair_ph",
        "sub-01_part-phase_flair",
        "dwi_adc",
        "t1_map",
        "sub-01_T1map",
        "swi_minip",
        "ep2d_diff_ADC_20240131120000_7",
        "dwi_ADCmap",
        "swi_phase_1",
        "swi_mIP_Images(SW)",
        "phase/swi",
    ],
)
def test_nifti_maps_and_phase_images_are_left_out_by_their_names(tmp_path, capsys, name):
    flair(tmp_path / "in" / "p1" / "flair.nii.gz")
    flair(tmp_path / "in" / "p1" / f"{name}.nii.gz")
    assert run(tmp_path / "in", "--out", tmp_path / "out") == 0
    assert "is named as a map or a phase image" in capsys.readouterr().err
    assert list(volumes(tmp_path / "out")) == ["p1_flair"]


def test_nifti_that_is_no_magnitude_by_the_json_beside_it(tmp_path, capsys):
    """dcm2niix names files by the protocol, which ADC and phase have of the images that they were made of."""
    for number, types in enumerate(
        (["ORIGINAL", "PRIMARY", "M"], ["DERIVED", "ADC"], ["ORIGINAL", "P"], "PHASE", None)
    ):
        flair(tmp_path / "in" / f"p{number}_flair.nii.gz", number)
        (tmp_path / "in" / f"p{number}_flair.json").write_text(json.dumps({"ImageType": types}))
    (tmp_path / "in" / "p4_flair.json").write_text("no JSON")
    assert run(tmp_path / "in", "--out", tmp_path / "out") == 0
    told = capsys.readouterr().err
    assert "p1_flair.nii.gz: is of the type ADC, as the JSON" in told and "p2_flair.nii.gz: is of the type P," in told
    assert set(volumes(tmp_path / "out")) == {"p0_flair", "p3_flair", "p4_flair"}


def test_nifti_in_other_units_has_its_voxels_in_mm(tmp_path, capsys):
    """Metres were taken for millimetres."""
    image = np.stack([head((40, 36), (12 + k, 20)) for k in range(3)], -1).astype(np.float32)
    (tmp_path / "in").mkdir()
    for unit, factor in (("meter", 1e-3), ("micron", 1e3), ("mm", 1.0), ("unknown", 1.0), ("mm", 1e-3)):
        volume = nibabel.Nifti1Image(image, np.diag([-0.9 * factor, -0.9 * factor, 4 * factor, 1]))
        volume.header.set_xyzt_units(unit)
        nibabel.save(volume, tmp_path / "in" / f"{unit}_{factor:g}_flair.nii")
    assert run(tmp_path / "in", "--out", tmp_path / "out") == 3
    assert "its voxels have 0.0009 x 0.0009 x 0.004 mm, which no head is scanned with" in capsys.readouterr().err
    found = [volume["voxel_mm"] for volume in volumes(tmp_path / "out").values()]
    assert found == [pytest.approx([4, 0.9, 0.9], rel=1e-3)] * 4


def test_a_contrast_that_the_file_contradicts_is_said(tmp_path, capsys):
    """Every T1 of a folder became FLAIR without a word."""
    for name in ("p1_flair", "p2_t1", "p3"):
        flair(tmp_path / "in" / f"{name}.nii.gz")
    assert run(tmp_path / "in", "--out", tmp_path / "out", "--contrast", "flair") == 0
    (line,) = (line for line in capsys.readouterr().err.splitlines() if "of itself" in line)
    assert line.endswith("p2_t1.nii.gz: says t1 of itself, and is taken for flair all the same")
    assert {volume["contrast"] for volume in volumes(tmp_path / "out").values()} == {"flair"}


def test_a_segmentation_of_few_labels_is_no_image(tmp_path, capsys):
    """Lesions in grades, or tissues, were taken for a FLAIR image."""
    flair(tmp_path / "in" / "p1" / "flair.nii.gz")
    labels = np.rint(4 * np.stack([head((40, 36), (12 + k, 20)) for k in range(3)], -1)).astype(np.uint8)
    nifti(tmp_path / "in" / "p1" / "flair_dseg.nii.gz", labels)
    assert run(tmp_path / "in", "--out", tmp_path / "out") == 3
    assert f"its data have only {len(np.unique(labels))} values: it is a segmentation" in capsys.readouterr().err
    assert list(volumes(tmp_path / "out")) == ["p1_flair"]


def test_nifti_that_is_signed_complex_or_coloured(tmp_path, capsys):
    """Negative values were cut off, and of complex ones the real part was taken, in silence."""
    image = np.stack([head((40, 36), (12 + k, 20)) for k in range(3)], -1).astype(np.float32)
    phase = np.linspace(-3, 3, image.size, dtype=np.float32).reshape(image.shape)
    nifti(tmp_path / "in" / "complex_flair.nii", (image * np.exp(1j * phase)).astype(np.complex64))
    nifti(tmp_path / "in" / "magnitude_flair.nii", image)
    nifti(tmp_path / "in" / "ringing_flair.nii", image - np.float32(0.02) * (image < 0.1))
    nifti(tmp_path / "in" / "phase_flair.nii", image * phase)
    nifti(tmp_path / "in" / "standardised_flair.nii", (image - image.mean()) / image.std())
    nifti(tmp_path / "in" / "colour_flair.nii", np.zeros(image.shape, [("R", "u1"), ("G", "u1"), ("B", "u1")]))
    assert run(tmp_path / "in", "--out", tmp_path / "out") == 3
    told = capsys.readouterr().err
    assert re.search(r"phase_flair.nii: \d+ % of its signal is negative", told)
    assert "standardised_flair.nii: 50 % of its signal is negative" in told
    assert "colour_flair.nii: it is a colour map" in told
    assert set(volumes(tmp_path / "out")) == {"complex_flair", "magnitude_flair", "ringing_flair"}
    both = [magnitude(tmp_path / "out", f"{name}_flair") for name in ("complex", "magnitude")]
    np.testing.assert_allclose(*both, atol=2e-3)


@pytest.mark.parametrize(
    ("numbers", "voxel", "told"),
    [({3: 3, 2: 2, 4: 1}, 1.0, "it holds the label 1"), ({}, 1.3, "its voxels have 1.3 x 1.3 x 1.3 mm")],
)
def test_segmentations_that_are_no_label_maps_of_heads(tmp_path, capsys, numbers, voxel, told):
    """Tissue classes and lesions became heads that there are not."""
    labels = label_map()
    for before, after in numbers.items():
        labels[labels == before] = after
    nifti(tmp_path / "in" / "p1" / "t1_seg.nii.gz", labels, np.diag([voxel, voxel, voxel, 1]))
    flair(tmp_path / "in" / "p1" / "flair.nii.gz")
    assert run(tmp_path / "in", "--out", tmp_path / "out") == 3
    assert told in capsys.readouterr().err
    assert list(volumes(tmp_path / "out")) == ["p1_flair"]


def test_volumes_of_several_files_never_have_one_name(tmp_path):
    """The second volume of a file took the place of another file's."""
    image = [np.stack([head((40, 36), (12 + k, place)) for k in range(3)], -1) for place in (8, 14, 20)]
    nifti(tmp_path / "in" / "p1" / "dwi.nii.gz", np.stack(image[:2], -1).astype(np.float32))
    nifti(tmp_path / "in" / "p1" / "dwi_02.nii.gz", image[2].astype(np.float32))
    assert run(tmp_path / "in", "--out", tmp_path / "out") == 0
    found = volumes(tmp_path / "out")
    assert len(found) == 3
    brightest = {name: np.unravel_index(magnitude(tmp_path / "out", name)[0].argmax(), (36, 40))[0] for name in found}
    assert len(set(brightest.values())) == 3 and found.keys() >= {"p1_dwi_01", "p1_dwi_02"}


def test_a_patient_stays_on_one_side_whatever_the_files_are_called(simulated_scan, tmp_path, capsys):
    """The patient ID in the header decides: excluded by the ID or by its pseudonym, which alone is written down."""
    mine, other = (simulated_scan(acceleration=1, calibration="none", subject=subject) for subject in (4, 5))
    for place, path in (("a/monday.h5", mine), ("b/friday.h5", mine), ("b/someone.h5", other)):
        (tmp_path / "in" / place).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, tmp_path / "in" / place)
    assert run(tmp_path / "in", "--out", tmp_path / "all") == 0
    subjects = {name: volume["subject"] for name, volume in volumes(tmp_path / "all").items()}
    assert subjects["a_monday"] == subjects["b_friday"] != subjects["b_someone"]
    for number, name in enumerate(("SIMULATED4", subjects["a_monday"])):
        out = tmp_path / f"out{number}"
        assert run(tmp_path / "in", "--out", out, "--exclude", name) == 0
        assert list(volumes(out)) == ["b_someone"]
        assert json.loads((out / "manifest.json").read_text())["exclude"] == [subjects["a_monday"]]
        assert not any("SIMULATED4" in path.read_text() for path in out.glob("*.json*"))
    assert run(tmp_path / "in", "--out", tmp_path / "out", "--exclude", "SIMULATED44") == 2
    assert "SIMULATED44, who is not among the subjects" in capsys.readouterr().err


def test_patients_for_validation_and_test_are_never_prepared(tmp_path):
    for number, patient in enumerate(("patient01", "patient03", *HELD_OUT[:2])):
        flair(tmp_path / "open_ms" / patient / "study1_FLAIR.nii.gz", number)
    label_map(tmp_path / "synthseg_labels" / f"{HELD_OUT[2]}.nii.gz")
    assert run(tmp_path, "--out", tmp_path / "out", "--exclude", "patient03") == 0
    ((name, volume),) = volumes(tmp_path / "out").items()
    assert (name, volume["subject"], volume["licence"]) == ("patient01_study1_FLAIR", "patient01", "CC-BY")
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["exclude"] == sorted(["patient03", *HELD_OUT])


def test_a_copy_of_an_excluded_patients_file_is_left_out_under_any_name(tmp_path, capsys):
    for patient in (1, 2):
        flair(tmp_path / "in" / f"patient{patient}" / "flair.nii.gz", patient)
    (tmp_path / "in" / "research7").mkdir()
    shutil.copy(tmp_path / "in" / "patient2" / "flair.nii.gz", tmp_path / "in" / "research7" / "t2_flair.nii.gz")
    assert run(tmp_path / "in", "--out", tmp_path / "out", "--exclude", "patient2") == 0
    assert "research7/t2_flair.nii.gz: is a copy of an excluded subject's file" in capsys.readouterr().err
    assert list(volumes(tmp_path / "out")) == ["patient1_flair"]


def test_what_is_done_is_kept_until_its_file_or_the_settings_change(tmp_path):
    paths = [flair(tmp_path / "in" / f"patient{n}_flair.nii.gz", n) for n in range(3)]
    out = tmp_path / "out"

    def times() -> list[int]:
        assert run(tmp_path / "in", "--out", out) == 0
        return [(out / f"patient{n}_flair.npy").stat().st_mtime_ns for n in range(3)]

    first = times()
    assert times() == first
    flair(paths[1], seed=4)
    second = times()
    assert [a == b for a, b in zip(first, second)] == [True, False, True]
    (out / "patient0_flair.npy").write_bytes(b"damaged")
    with (out / "done.jsonl").open("a") as file:
        file.write('{"key": "cut of')
    third = times()
    assert [a == b for a, b in zip(second, third)] == [False, True, True]
    assert PreparedSlices(out, 0.5).example(32, torch.Generator().manual_seed(0)).contrast == "flair"


# kills itself once one volume is done, and names its workers before
KILLED = """
import multiprocessing, os, signal, sys
from dpmtrain.cli import main
from dpmtrain.data.journal import Journal
add = Journal.add
def add_one(*given):
    add(*given)
    print(*(worker.pid for worker in multiprocessing.active_children()), flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
Journal.add = add_one
main(sys.argv[1:])
"""


def running(process) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="processes are counted in /proc")
def test_kill_9_loses_only_the_volume_in_hand(tmp_path):
    for n in range(12):
        flair(tmp_path / "in" / f"patient{n}_flair.nii.gz", n)
    label_map(tmp_path / "in" / "zz_seg_1.nii.gz")
    out = tmp_path / "out"
    given = ["prepare", str(tmp_path / "in"), "--out", str(out), "--jobs", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    # a file, since a pipe would be waited for until the workers too have closed it
    with (tmp_path / "workers").open("w") as printed:
        killed = subprocess.run(
            [sys.executable, "-c", KILLED, *given], env=environment, stdout=printed, stderr=subprocess.DEVNULL
        )
    assert killed.returncode == -signal.SIGKILL
    assert not (out / "manifest.json").exists()
    workers = (tmp_path / "workers").read_text().split()
    assert workers
    until(lambda: not any(map(running, workers)))  # they leave with their parent
    done = [json.loads(line)["files"] for line in (out / "done.jsonl").read_text().splitlines()]
    kept = {name: stat for files in done for name, stat in files.items()}
    assert len(done) == 1 and kept
    assert run(tmp_path / "in", "--out", out) == 0
    assert len(volumes(out)) == 12 + len(labelmaps.PREPARED)
    for name, (size, modified) in kept.items():
        assert ((out / name).stat().st_size, (out / name).stat().st_mtime_ns) == (size, modified)
    assert not list(out.glob(".*"))


def test_a_full_disk_ends_with_one_sentence_and_keeps_what_is_done(tmp_path):
    """No file may grow beyond 40 kB: the system's own refusal to write, for the second volume alone."""
    flair(tmp_path / "in" / "a_flair.nii.gz")
    big = np.stack([head((160, 150), (70, 80))] * 2, -1).astype(np.float32)
    nifti(tmp_path / "in" / "b_flair.nii.gz", big)

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, resource.RLIM_INFINITY))

    command = ["prepare", str(tmp_path / "in"), "--out", str(tmp_path / "out"), "--jobs", "1"]
    done = forked(main, *command, before=limit)
    assert done.returncode == 2
    assert b"b_flair.npy cannot be written" in done.stderr
    assert b"run the same command again" in done.stderr
    assert b"Traceback" not in done.stderr
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a_flair.npy", "done.jsonl"]
    kept = (tmp_path / "out" / "a_flair.npy").stat().st_mtime_ns
    assert run(tmp_path / "in", "--out", tmp_path / "out") == 0
    assert (tmp_path / "out" / "a_flair.npy").stat().st_mtime_ns == kept


def test_examples_keep_a_measured_jump_of_phase_and_small_matrices_get_air(tmp_path, monkeypatch):
    """A disc inside a plate differs from it by 2 rad; crops are larger than the plate. What is smooth of it goes into
    the coil maps in most examples, but the jump at its edge stays in all."""
    monkeypatch.setattr(painted_foci, "SHARE_ELSEWHERE", 0.0)
    rows, cols = np.mgrid[:72, :84]
    truth = np.where((rows - 36) ** 2 + (cols - 40) ** 2 < 400, 1, np.exp(2j))
    entry = {
        "contrast": "t2", "subject": "a", "source": "own", "simulated": False, "voxel_mm": [3.0, 1.0, 1.0],
        "shape": [2, 72, 84], "spans": [[0, 2]],
    }  # fmt: skip
    np.save(tmp_path / "a.npy", np.stack([np.stack([truth.real, truth.imag], -1)] * 2).astype(np.float16))
    (tmp_path / "manifest.json").write_text(json.dumps({"volumes": [{**entry, "file": "a.npy"}]}))
    slices = PreparedSlices(tmp_path, real_fraction=1.0)
    means = []
    for seed in range(48):
        image, _, contrast = slices.example(112, torch.Generator().manual_seed(seed))
        assert (image.shape, image.dtype, contrast) == ((112, 112), torch.complex64, "t2")
        assert 0.2 < float((image.abs() > 0.1).float().mean()) < 0.7  # 6048 of 12544 pixels, stretched or not
        steps = torch.angle(image[2:] * image[:-2].conj()).abs()[(image[2:].abs() > 0.5) & (image[:-2].abs() > 0.5)]
        assert steps.kthvalue(int(0.99 * len(steps))).values > 1
        means.append(complex(image.mean() / image.abs().mean()))
    flat = [m for m in means if abs(m.imag) < 0.35 and m.real > 0.5]
    assert 24 < len(flat) < 48, means  # the smooth phase is off in 8 of 10, and any in the rest
    image = torch.from_numpy(truth).to(torch.complex64)
    moved = affine(image, 0.2, 1.1, 0.9)
    assert torch.allclose(affine(image.imag, 0.2, 1.1, 0.9), moved.imag.clamp(min=0), atol=1e-6)


def test_a_prepared_file_that_is_not_the_manifests_is_named(tmp_path):
    flair(tmp_path / "in" / "a_flair.nii.gz")
    assert run(tmp_path / "in", "--out", tmp_path / "out") == 0
    for damage in (b"", np.lib.format.MAGIC_PREFIX):
        (tmp_path / "out" / "a_flair.npy").write_bytes(damage)
        with pytest.raises(kinds.BadInputError, match="a_flair.npy cannot be read .* run `dpmtrain prepare` again"):
            PreparedSlices(tmp_path / "out", 0.5)
    np.save(tmp_path / "out" / "a_flair.npy", np.zeros((2, 5, 5), np.float16))
    with pytest.raises(kinds.BadInputError, match="where the manifest says"):
        PreparedSlices(tmp_path / "out", 0.5)
