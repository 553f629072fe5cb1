"""What diverse noise is compared with."""

from __future__ import annotations

import torch

from benchmarks.peers import most_different, pink


def test_the_most_different_are_chosen_one_by_one() -> None:
    at = torch.tensor([0.0, 0.1, 3.0, 1.5, -1.4])  # angles: opposite the first, then in between on either side
    features = torch.stack([at.cos(), at.sin()], 1) * torch.arange(1, 6)[:, None]
    assert most_different(features, 3) == [0, 2, 3]
    assert sorted(most_different(features, 5)) == list(range(5))


def test_pink_noise_keeps_each_length() -> None:
    noise = torch.randn(3, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    for alpha in (0.0, 0.5, 1.0):
        found = pink(noise, alpha)
        assert torch.allclose(found.flatten(1).norm(dim=1), noise.flatten(1).norm(dim=1))
        assert torch.allclose(found, noise, atol=1e-5) == (alpha == 0)
