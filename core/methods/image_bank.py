"""A bank of real image embeddings: what images look like to a CLIP, as members, mean and covariance.

The covariance of M members in E dimensions is singular for M <= E, which is the usual case. It is shrunk towards a
multiple of the identity, by as much as oracle approximating shrinkage says (Chen, Wiesel, Eldar and Hero 2010, closed
form; the equations as in scikit-learn's `OAS`):

    covariance = (1 - r) S + r m I,    m = trace(S) / E,    r > 1 / (M + 1)

Since no eigenvalue of S is above E m, the condition number is below 1 + E M, however few the members. It is never
written out: S has at most min(M - 1, E) eigenvectors, and with those a distance is two thin matrix products.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from .. import files

_NAMES = ("members", "origin")


@dataclass(frozen=True, eq=False)
class ImageBank:
    """Real image embeddings.

    members: `[M, E]`, as the vision tower gives them, float32.
    origin: `[E]`, the tower's embedding of an all-zero input: it tells towers of the same width apart.

    Raises ValueError for no members, other shapes, and values that are not finite.
    """

    members: Tensor
    origin: Tensor

    def __post_init__(self) -> None:
        if self.members.ndim != 2 or self.members.shape[0] == 0 or self.members.shape[1] == 0:
            raise ValueError(
                f"members has shape {list(self.members.shape)}; it must be [M, E] with one embedding or more. An empty "
                "bank holds nothing to be near to."
            )
        if self.origin.shape != self.members.shape[1:]:
            raise ValueError(f"origin has shape {list(self.origin.shape)}; it must be [{self.members.shape[1]}].")
        for name in _NAMES:
            if not bool(torch.isfinite(getattr(self, name)).all()):
                raise ValueError(f"{name} of the bank has values that are not finite (NaN or infinite).")
        if bool((self.members.norm(dim=1) == 0).any()):
            raise ValueError("members has an embedding that is zero everywhere, which has no direction.")

    def __len__(self) -> int:
        return len(self.members)

    @property
    def width(self) -> int:
        return self.members.shape[1]

    def to(self, device: torch.device) -> ImageBank:
        """A copy on a device, of ordinary tensors where it is made outside of inference mode."""
        return ImageBank(*(getattr(self, name).detach().clone().to(device, torch.float32) for name in _NAMES))

    def extended(self, members: Tensor) -> ImageBank:
        """This bank and more members `[K, E]`. Raises ValueError for another width."""
        if members.ndim != 2 or members.shape[1] != self.width:
            raise ValueError(
                f"The bank's embeddings are {self.width} wide, the new ones have shape {list(members.shape)}: they "
                "come from another vision tower. Begin a new bank."
            )
        return ImageBank(torch.cat([self.members, members.to(self.members)]), self.origin)

    @cached_property
    def mean(self) -> Tensor:
        """`[E]`."""
        return self.members.mean(0)

    @cached_property
    def length(self) -> float:
        """Mean length of the members."""
        return self.members.norm(dim=1).mean().item()

    @cached_property
    def unit(self) -> Tensor:
        """The members' directions, `[M, E]`."""
        return F.normalize(self.members, dim=1)

    def nearest(self, embeddings: Tensor) -> tuple[Tensor, Tensor]:
        """For embeddings `[N, E]` the cosine to the nearest member, `[N]`, and which it is: one matrix product.

        Differentiable. Raises ValueError for another width.
        """
        self.check_width(embeddings)
        return (F.normalize(embeddings, dim=1) @ self.unit.to(embeddings).T).max(dim=1)

    def squared_distance(self, embeddings: Tensor) -> Tensor:
        """Squared Mahalanobis distance `[N]` of embeddings `[N, E]` to the mean, divided by E, so that a number means
        the same at every width. The bank's own members have 1 on average where they are many, and less where few.

        Differentiable. Raises ValueError for another width, and for a bank without variety.
        """
        self.check_width(embeddings)
        axes, variances, rest = (value.to(embeddings) for value in self._covariance)
        away = embeddings - self.mean.to(embeddings)
        along = away @ axes.T
        across = away - along @ axes  # what no eigenvector reaches has the variance of the identity's part
        return ((along.square() / variances).sum(1) + across.square().sum(1) / rest) / self.width

    @property
    def shrinkage(self) -> float:
        """Share r of the identity in the covariance, 0..1."""
        return self._decomposed[2]

    def covariance(self) -> Tensor:
        """The covariance written out, `[E, E]`: for tests and the curious. Raises ValueError as `squared_distance`."""
        axes, variances, rest = self._covariance
        identity = torch.eye(self.width, dtype=axes.dtype, device=axes.device)
        return rest * identity + (axes.T * (variances - rest)) @ axes

    def check_width(self, embeddings: Tensor) -> None:
        """Raises ValueError for embeddings of another width than the bank's."""
        if embeddings.shape[-1] != self.width:
            raise ValueError(
                f"The bank's embeddings are {self.width} wide, these {embeddings.shape[-1]}: they come from different "
                "vision towers. Make a bank with this one."
            )

    @cached_property
    def _covariance(self) -> tuple[Tensor, Tensor, Tensor]:
        """Eigenvectors `[R, E]`, the covariance's variance along each `[R]`, and that in all other directions."""
        axes, eigenvalues, shrinkage = self._decomposed
        scale = eigenvalues.sum() / self.width
        if len(self) < 2 or not bool(scale > 0):
            raise ValueError(
                f"The bank has {len(self)} images, all alike: they have no covariance. Add other images, or use "
                'the constraint "nearest neighbour".'
            )
        rest = shrinkage * scale
        return axes.to(self.members), ((1 - shrinkage) * eigenvalues + rest).to(self.members), rest.to(self.members)

    @cached_property
    def _decomposed(self) -> tuple[Tensor, Tensor, float]:
        """Eigenvectors `[R, E]` and eigenvalues `[R]` of S, R <= min(M, E); and the shrinkage."""
        count, width = self.members.shape
        members = self.members.cpu().double()  # not every device has float64
        centred = members - members.mean(0)
        if count <= width:
            # The small side: the eigenvectors of [M, M] give those of [E, E].
            values, turned = torch.linalg.eigh(centred @ centred.T / count)
            kept = values > values.max() * 1e-10
            axes = F.normalize((turned[:, kept].T @ centred), dim=1)
        else:
            values, turned = torch.linalg.eigh(centred.T @ centred / count)
            kept = values > values.max() * 1e-10
            axes = turned[:, kept].T
        values = values[kept]
        scale = values.sum() / width
        squared = values.square().sum() / width**2  # mean square of the entries of S
        numerator, denominator = squared + scale**2, (count + 1) * (squared - scale**2 / width)
        return axes, values, 1.0 if denominator <= 0 else min((numerator / denominator).item(), 1.0)

    def save(self, path: Path) -> None:
        """Writes the bank to a safetensors file in one step; see `files.store`."""
        files.store(path, {name: getattr(self, name).float() for name in _NAMES})


def load(path: Path) -> ImageBank:
    """A bank from a file. Raises ValueError for a file that is not there, cannot be read or is no bank."""
    if not path.is_file():
        raise ValueError(f"There is no image bank {path}.")
    try:
        found = load_file(path)
        return ImageBank(*(found[name].float() for name in _NAMES))
    except KeyError as error:
        raise ValueError(f"{path} is no image bank: it has no tensor {error}.") from error
    except (SafetensorError, OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as an image bank ({error}). Delete it, or make it again.") from error
