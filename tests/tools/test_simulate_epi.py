"""The simulated EPI scan: the samples' places in k-space, ghosts, shots, counters, header and truth."""

import ismrmrd
import numpy as np
import pytest
from dpmrecon.tools.epi_settings import EpiSettings
from dpmrecon.tools.simulate import simulate
from dpmrecon.tools.simulated_epi import ghost_of, shots_of
from dpmrecon.tools.simulated_slice import coil_maps, object_phase, slice_points, the_object

from support.acquisitions import read

NAVIGATOR, REVERSED = ismrmrd.ACQ_IS_PHASECORR_DATA, ismrmrd.ACQ_IS_REVERSE
SMALL = {
    "matrix": (36, 30),
    "n_slices": 1,
    "n_coils": 4,
    "calibration_lines": 10,
    "noise": 0.0,
    "noise_scan": False,
}


def scan(tmp_path, **settings):
    """The settings, the header and the acquisitions of a small scan."""
    chosen = EpiSettings(**{**SMALL, **settings})
    path = tmp_path / "scan.h5"
    simulate(path, chosen)
    return chosen, *read(path)


def positions(header):
    """k (n_samples,) of a forward line's samples in cycles per field of view: the header's gradient, integrated."""
    description = header.encoding[0].trajectoryDescription
    times = {p.name: p.value for p in [*description.userParameterLong, *description.userParameterDouble]}
    up, top, down = times["rampUpTime"], times["flatTopTime"], times["rampDownTime"]
    clock = np.linspace(0, up + top + down, 200001)
    gradient = np.interp(clock, [0, up, up + top, up + top + down], [0, 1, 1, 0])
    area = np.concatenate([[0], np.cumsum((gradient[1:] + gradient[:-1]) / 2 * np.diff(clock))])
    ends = times["acqDelayTime"] + times["dwellTime"] * np.arange(times["numSamples"] + 1)
    k = np.interp(ends, clock, area)
    return header.encoding[0].encodedSpace.matrixSize.x * (k[1:] - area[-1] / 2) / (k[-1] - k[0])


def fine_images(settings, weighting):
    """(n_coils, 2 rows, 4 cols) complex128: what the coils receive from each point of the grid twice as fine."""
    table = [settings.weighting_table[weighting]]
    head, read_dir, phase_dir, through = the_object(settings), *settings.directions()
    sides = settings.pixel_mm[1] / 2 * read_dir, settings.pixel_mm[0] / 2 * phase_dir
    cell = np.stack([*sides, settings.slice_thickness_mm / 3 * through])
    offsets = [part * settings.slice_thickness_mm for part in (-1 / 3, 0, 1 / 3)]
    planes = [head.signals(slice_points(settings, 0, 2, settings.oversampling, at), table, cell)[0] for at in offsets]
    points = slice_points(settings, 0, 2, settings.oversampling, 0.0)
    maps = coil_maps(points, settings.n_coils, settings.subject) * object_phase(points, settings.subject)
    return maps.astype(complex) * np.mean(planes, 0)


@pytest.mark.parametrize(
    ("matrix", "ramp_sampling", "oversampling"),
    [((36, 30), False, 2), ((35, 27), True, 2), ((27, 34), True, 1), ((33, 41), False, 1)],
)
def test_a_line_is_the_object_s_transform_at_the_header_s_places(tmp_path, matrix, ramp_sampling, oversampling):
    calm = {"motion": 0.0, "eddy": 0.0, "ghost": 0.2}
    settings, header, acquisitions = scan(
        tmp_path, matrix=matrix, ramp_sampling=ramp_sampling, oversampling=oversampling, **calm
    )
    k = positions(header)
    assert (np.ptp(np.diff(k)) > 0.05) == ramp_sampling
    rows, cols = (np.arange(2 * n) - n for n in (matrix[0], matrix[1] * oversampling))
    shots = shots_of(settings)
    place = 0  # of a shot's first line
    for shot in shots[:8]:
        image = fine_images(settings, shot.weighting or 0) / np.sqrt(16 * matrix[0] * matrix[1] * oversampling)
        ghost = ghost_of(settings, shot, len(shots))
        for number in (0, 1, 3, 4, 3 + len(shot.rows) - 1):  # forward and reversed, navigators and image
            line = acquisitions[place + number]
            row = matrix[0] // 2 if number < 3 else shot.rows[number - 3]
            sign = -1 if line.is_flag_set(REVERSED) else 1
            assert line.idx.kspace_encode_step_1 == row
            profile = np.exp(-2j * np.pi * (row - matrix[0] // 2) * rows / (2 * matrix[0])) @ image
            half = np.exp(1j * sign * (ghost.constant + 2 * np.pi * ghost.shift * cols / (2 * matrix[1])))
            expected = (profile * half) @ np.exp(-2j * np.pi * sign * np.outer(k, cols / (2 * matrix[1]))).T
            assert np.abs(line.data - expected).max() < 1e-5 * np.abs(expected).max()
        place += 3 + len(shot.rows)
