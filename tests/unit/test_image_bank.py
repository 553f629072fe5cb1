"""Banks of image embeddings: shrinkage and distances beside their written-out forms, files, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from comfyui_diversity.core.methods.image_bank import ImageBank, load
from safetensors.torch import save_file
from torch import Tensor


def members(count: int, width: int, seed: int = 0) -> Tensor:
    """Correlated, off centre, float64."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(width, width, generator=generator, dtype=torch.float64)
    return 2 + torch.randn(count, width, generator=generator, dtype=torch.float64) @ mixing


def make_bank(count: int, width: int = 12, seed: int = 0) -> ImageBank:
    return ImageBank(members(count, width, seed), torch.ones(width, dtype=torch.float64))


def written_out(bank: ImageBank) -> tuple[Tensor, float]:
    """Covariance and shrinkage by the published formula, with every matrix written out."""
    x = bank.members.double()
    count, width = x.shape
    x = x - x.mean(0)
    sample = x.T @ x / count
    scale = sample.trace() / width
    numerator = sample.square().mean() + scale**2
    denominator = (count + 1) * (sample.square().mean() - scale**2 / width)
    shrinkage = min(float(numerator / denominator), 1.0)
    return (1 - shrinkage) * sample + shrinkage * scale * torch.eye(width, dtype=torch.float64), shrinkage


@pytest.mark.parametrize("count", [2, 12, 40])
def test_covariance_is_oracle_approximating_shrinkage(count: int) -> None:
    bank = make_bank(count)
    covariance, shrinkage = written_out(bank)
    assert bank.shrinkage == pytest.approx(shrinkage, rel=1e-9)
    assert torch.allclose(bank.covariance(), covariance, rtol=1e-9, atol=1e-9)
    library = pytest.importorskip("sklearn.covariance")
    theirs = library.OAS().fit(bank.members.numpy())
    assert bank.shrinkage == pytest.approx(theirs.shrinkage_, rel=1e-9)
    assert torch.allclose(bank.covariance(), torch.from_numpy(theirs.covariance_), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("count", [5, 40])
def test_squared_distance_is_that_of_the_inverse(count: int) -> None:
    bank = make_bank(count)
    covariance, _ = written_out(bank)
    points = members(7, 12, seed=9)
    away = points - bank.members.mean(0)
    direct = (away @ torch.linalg.inv(covariance) * away).sum(1) / 12
    assert torch.allclose(bank.squared_distance(points), direct, rtol=1e-8)
    assert bank.squared_distance(bank.mean[None]).item() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("count", [2, 30])
def test_few_members_in_many_dimensions_are_well_conditioned(count: int) -> None:
    """The condition number is below 1 + E M, as the module says."""
    bank = make_bank(count, width=200)
    eigenvalues = torch.linalg.eigvalsh(bank.covariance())
    assert (eigenvalues[-1] / eigenvalues[0]).item() <= 1 + 200 * count
    assert torch.isfinite(bank.squared_distance(members(3, 200, seed=4))).all()


@pytest.mark.parametrize("count", [5, 40])
def test_gradients_of_both_distances(count: int) -> None:
    bank = make_bank(count)
    covariance, _ = written_out(bank)
    points = members(3, 12, seed=9).requires_grad_()
    [gradient] = torch.autograd.grad(bank.squared_distance(points).sum(), points)
    away = points.detach() - bank.members.mean(0)
    assert torch.allclose(gradient, 2 * away @ torch.linalg.inv(covariance) / 12, rtol=1e-7)
    assert torch.autograd.gradcheck(lambda value: bank.nearest(value)[0], (points,))


def test_nearest_is_the_best_of_all() -> None:
    bank = make_bank(20)
    points = members(6, 12, seed=3)
    cosines, which = bank.nearest(points)
    for k, point in enumerate(points):
        every = [torch.cosine_similarity(point, member, dim=0).item() for member in bank.members]
        assert cosines[k].item() == pytest.approx(max(every))
        assert every[int(which[k])] == max(every)
    cosines, which = bank.nearest(3 * bank.members[4:5])
    assert (cosines.item(), which.item()) == (pytest.approx(1), 4)


def test_extended_is_the_bank_of_all() -> None:
    bank = make_bank(5)
    more = members(4, 12, seed=8)
    both = bank.extended(more)
    assert (len(bank), len(both)) == (5, 9)
    assert torch.equal(both.members, torch.cat([bank.members, more]))
    assert torch.allclose(both.covariance(), written_out(both)[0])
    with pytest.raises(ValueError, match="12 wide, the new ones have shape"):
        bank.extended(members(4, 11))


def test_saved_and_loaded(tmp_path: Path) -> None:
    bank = make_bank(5).to(torch.device("cpu"))
    path = tmp_path / "folder" / "mine.safetensors"
    bank.save(path)
    bank.extended(bank.members[:1]).save(path)  # replaced
    again = load(path)
    assert torch.equal(again.members, torch.cat([bank.members, bank.members[:1]]))
    assert torch.equal(again.origin, bank.origin)
    assert [file.name for file in path.parent.iterdir()] == ["mine.safetensors"]


def test_files_that_are_no_bank(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="There is no image bank"):
        load(tmp_path / "none.safetensors")
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"not a file of tensors")
    with pytest.raises(ValueError, match="cannot be read as an image bank"):
        load(broken)
    save_file({"latents": torch.zeros(2, 3)}, broken)
    with pytest.raises(ValueError, match="is no image bank"):
        load(broken)
    save_file({"members": torch.full((2, 3), torch.nan), "origin": torch.ones(3)}, broken)
    with pytest.raises(ValueError, match="not finite"):
        load(broken)


def test_what_a_bank_refuses() -> None:
    with pytest.raises(ValueError, match="An empty bank holds nothing"):
        ImageBank(torch.zeros(0, 4), torch.ones(4))
    with pytest.raises(ValueError, match="members has shape"):
        ImageBank(torch.ones(4), torch.ones(4))
    with pytest.raises(ValueError, match="origin has shape"):
        ImageBank(torch.ones(2, 4), torch.ones(5))
    with pytest.raises(ValueError, match="no direction"):
        ImageBank(torch.zeros(2, 4), torch.ones(4))
    for alone in (ImageBank(torch.ones(1, 4), torch.ones(4)), ImageBank(torch.ones(3, 4), torch.ones(4))):
        with pytest.raises(ValueError, match="all alike"):
            alone.squared_distance(torch.ones(1, 4))
        assert alone.nearest(torch.ones(1, 4))[0].item() == pytest.approx(1)
    with pytest.raises(ValueError, match="12 wide, these 5"):
        make_bank(3).nearest(torch.ones(1, 5))
    with pytest.raises(ValueError, match="12 wide, these 5"):
        make_bank(3).squared_distance(torch.ones(1, 5))
