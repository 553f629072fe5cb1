"""Rows that begin alike, through a model that reads from left to right, as one sequence: what they share once, and
behind it the end of one row after another.

Each end attends to what is shared and to itself, at the positions that it has in its own row, so its output is the
row's own (the tree attention of SpecInfer, arXiv 2305.09781). N rows of P + S positions become one of P + N S.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from comfy.clip_model import CLIPTextModel
from comfy.sd1_clip import SDClipModel
from comfy.text_encoders.llama import Llama2_
from torch import Tensor

# Attention grows with the square of the sequence, and some models attend to no more than so many positions.
LONGEST = 1024


@dataclass(frozen=True)
class Packing:
    """So many rows of `length` positions, of which the first `shared` are the same in all."""

    count: int
    shared: int
    length: int

    @property
    def ends(self) -> int:
        """Positions of a row that are its own."""
        return self.length - self.shared

    def pack(self, rows: Tensor) -> Tensor:
        """`[1, T, D]` of rows `[N, L, D]`."""
        return torch.cat([rows[:1, : self.shared], rows[:, self.shared :].flatten(0, 1)[None]], dim=1)

    def unpack(self, packed: Tensor) -> Tensor:
        """The ends `[N, S, D]` of what has the rows' positions, `[1, T, D]`."""
        return packed[0, self.shared :].unflatten(0, (self.count, self.ends))

    def positions(self, device: torch.device) -> Tensor:
        """Where each position is in its own row, `[T]`."""
        own = torch.arange(self.length, device=device)
        return torch.cat([own[: self.shared], own[self.shared :].repeat(self.count)])

    def allowed(self, device: torch.device) -> Tensor:
        """Whether position i (first) attends to position j, `[T, T]`."""
        rows = torch.arange(self.count, device=device).repeat_interleave(self.ends)
        row = torch.cat([torch.full((self.shared,), -1, device=device), rows])
        mine = (row[None] == -1) | (row[:, None] == row[None])
        return mine & torch.ones_like(mine).tril()


def can_be_packed(module: SDClipModel) -> bool:
    """Whether an encoder reads from left to right and takes a mask and positions: CLIP's and ComfyUI's language models,
    but for those that have a model of their own kind."""
    transformer = module.transformer
    return isinstance(transformer, CLIPTextModel) or type(getattr(transformer, "model", None)) is Llama2_


def rows_at_once(shared: int, length: int) -> int:
    """How many rows are packed in one sequence."""
    return max(1, (LONGEST - shared) // (length - shared))
