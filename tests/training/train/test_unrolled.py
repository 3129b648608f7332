"""The unrolled control: gradients of the proximal step against a dense solve, and what its first half iteration is."""

import torch
from dpmrecon.physics.forward import ForwardModel
from dpmrecon.prior.denoiser import complex_noise
from dpmtrain.train import unrolled
from dpmtrain.train.undersampled import Undersampled, coil_maps
from dpmtrain.train.unrolled import Proximal, Unrolled, unrolled_loss

CONFIG = {"widths": [4, 6], "blocks": [1, 1], "embedding": 8, "labels": ["flair", "t1"], "conditioning": "cg-sense"}


def problem(rows=7, cols=6):
    """(model, A^H y, another image, the true image) of two images with masks of their own."""
    generator = torch.Generator().manual_seed(1)
    mask = torch.zeros(2, 1, rows, cols)
    mask[0, 0, ::2] = mask[1, 0, 1::3] = mask[:, 0, 2:4] = 1
    model = ForwardModel(coil_maps((2, 3, rows, cols), generator), mask)
    truth, image = (complex_noise((2, rows, cols), generator) for _ in range(2))
    return model, model.adjoint(model.forward(truth)), image, truth


def test_gradients_of_the_proximal_step_are_those_of_a_dense_solve(monkeypatch):
    monkeypatch.setattr(unrolled, "CG_STEPS", 100)
    monkeypatch.setattr(unrolled, "TOLERANCE", 1e-7)
    model, zero_filled, image, _ = problem()
    count = image[0].numel()
    basis = torch.eye(count, dtype=torch.complex64).view(count, *image.shape[1:])
    columns = [model.normal(one.expand_as(image)).flatten(1) for one in basis]
    normal = torch.stack(columns, -1)  # (2, count, count)

    def dense(image, weight):
        right = zero_filled.flatten(1) + weight[:, None] * image.flatten(1)
        matrix = normal + weight[:, None, None] * torch.eye(count)
        return torch.linalg.solve(matrix, right).view_as(image)

    wanted = complex_noise(tuple(image.shape), torch.Generator().manual_seed(2))
    found = []
    for solve in (lambda image, weight: Proximal.apply(image, weight, zero_filled, model), dense):
        given, weight = image.clone().requires_grad_(), torch.tensor([0.3, 0.07], requires_grad=True)
        made = solve(given, weight)
        (made - wanted).abs().square().sum().backward()
        found.append((made.detach(), given.grad, weight.grad))
    for one, other in zip(*found):
        assert float((one - other).norm() / other.norm()) < 1e-4


def test_training_lowers_the_loss_and_moves_the_errors():
    model, zero_filled, _, truth = problem(16, 13)
    torch.manual_seed(0)
    network, ones = Unrolled(CONFIG), torch.ones(2)
    batch = Undersampled(truth, torch.ones(2, 16, 13), 0.5 * truth, 3 * ones, 0.02 * ones, zero_filled, model)
    optimizer, label = torch.optim.Adam(network.parameters(), 3e-3), torch.zeros(2, 2)
    before, losses = network.log_error.detach().clone(), []
    for _ in range(12):
        loss = unrolled_loss(network, batch, label, torch.Generator())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.9 * losses[0] and bool((network.log_error.detach() != before).all())


def test_a_network_that_knows_nothing_leaves_proximal_steps_alone():
    """Its v is 0 before training: what remains moves the conventional image to the data again and again."""
    model, zero_filled, image, _ = problem(9, 11)
    network, ones = Unrolled(CONFIG), torch.ones(2)
    with torch.no_grad():
        found = network.reconstructed(model, zero_filled, image, 3 * ones, 0.02 * ones, torch.zeros(2, 2))
    weight = ((unrolled.NOISE_FACTOR * 0.02 + unrolled.MODEL_ERROR) / unrolled.FIRST_ERROR) ** 2 * ones
    expected = image
    for _ in range(unrolled.ITERATIONS):
        expected = model.prox(zero_filled, expected, weight, unrolled.CG_STEPS)
    assert torch.allclose(found, expected, atol=1e-4)
