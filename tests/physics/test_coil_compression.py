"""Virtual coils keep the forward model."""

from dataclasses import replace

import torch
from dpmrecon.mrd.collect import slices
from dpmrecon.mrd.file import open_scan
from dpmrecon.physics.coil_compression import compressed
from dpmrecon.prior.denoiser import complex_noise
from dpmrecon.recon.prepare import with_coil_maps


def test_compression_to_virtual_coils_keeps_the_forward_model(simulated_scan):
    with open_scan(simulated_scan(matrix=(48, 64), n_coils=20)) as scan:
        (data,) = slices(scan.acquisitions(), scan.header)
    fewer = compressed(data)
    assert 12 <= len(fewer.kspace) < 20
    assert fewer.kspace.shape[1:] == data.kspace.shape[1:]
    assert fewer.calibration.shape == (len(fewer.kspace), *data.calibration.shape[1:])
    image = complex_noise((1, 48, 64), torch.Generator().manual_seed(0))
    whole, small = (next(with_coil_maps([part], torch.device("cpu"))) for part in (replace(data, sigma_n=1e-9), fewer))
    assert (len(whole.data.kspace), len(small.data.kspace)) == (20, len(fewer.kspace))
    inside = image * whole.model.support * small.model.support
    difference = whole.model.normal(inside) - small.model.normal(inside)
    assert difference.norm() < 0.03 * whole.model.normal(inside).norm()
    assert compressed(replace(data, kspace=data.kspace[:12], calibration=data.calibration[:12])).kspace.shape[0] == 12
