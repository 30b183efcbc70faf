"""Images as an encoder wants them, made a batch at a time of pixels that need not fit in memory."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Batches:
    """Images that are normalized, on a device, when they are asked for.

    `pixels` uint8 (N, 3, H, W), in memory or mapped from a file, on any device; what is indexed or
    split is float32 (n, 3, H, W) on `device`.
    """

    pixels: Tensor
    normalize: Callable[[Tensor], Tensor]
    device: torch.device

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, which: slice | Tensor | Sequence[int]) -> Tensor:
        if not isinstance(which, slice):
            which = torch.as_tensor(which, device=self.pixels.device)
        return self.normalize(self.pixels[which].to(self.device))

    def split(self, size: int) -> Iterator[Tensor]:
        """Batches of that size, in order; the last one may be smaller."""
        return (self[start : start + size] for start in range(0, len(self), size))
