"""Order statistics of more numbers than are in memory at a time."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

FITS = 2**22  # numbers that are put in order in memory
DIGIT = 21  # bits that a pass tells apart; three times that are all bits but the sign


def kth_magnitude(
    pieces: Callable[[], Iterable[Tensor]], size: int, place: int, held: Tensor | None = None
) -> float:
    """The number at `place` (from 0) among the `size` sorted magnitudes of float64 pieces.

    Magnitudes are in the order of their bits as integers. Each pass over the pieces counts the next
    digit of those that share the digits found so far, until these are few enough to sort: a radix
    select (Knuth, The Art of Computer Programming 3, 5.2.5), exact whatever the numbers. `held` is
    memory for `size` numbers, used where FITS of them are not exceeded: new memory for each of many
    calls would take as long as filling it.
    """
    found, shift, inside = 0, 63, size
    while inside > FITS and shift:
        counts, least, most = _counted(pieces(), shift, found)
        if least == most:  # soon so for differences of 16-bit numbers: few are distinct
            return _as_float(least)
        totals = counts.cumsum(0)
        digit = int(torch.searchsorted(totals, place, right=True))
        inside = int(counts[digit])
        place -= int(totals[digit]) - inside
        found, shift = found << DIGIT | digit, shift - DIGIT
    if shift == 63:
        found = _smallest(_magnitudes(pieces(), size, held), place)
    elif shift:
        found = _smallest(torch.cat([_within(p, shift, found) for p in pieces()]), place)
    return _as_float(found)


def _magnitudes(pieces: Iterable[Tensor], size: int, held: Tensor | None) -> Tensor:
    """All magnitudes, as integers: flat int64, in `held` if that is on their device."""
    end = 0
    for piece in pieces:
        if held is None or held.device != piece.device:
            held = piece.new_empty(size)
        begin, end = end, end + piece.numel()
        held[begin:end].view(piece.shape).copy_(piece)
    assert held is not None  # there is a number
    return held[:size].abs_().view(torch.int64)


def _as_float(bits: int) -> float:
    return float(torch.tensor(bits).view(torch.float64))


def _within(piece: Tensor, shift: int, leading: int) -> Tensor:
    """The magnitudes, as integers, whose bits from `shift` on are `leading`: flat int64."""
    bits = piece.abs().flatten().view(torch.int64)
    return bits if shift == 63 else bits[bits >> shift == leading]


def _counted(pieces: Iterable[Tensor], shift: int, leading: int) -> tuple[Tensor, int, int]:
    """How many magnitudes of `_within` have each digit below `shift`; the least and the largest."""
    counts, least, most = torch.zeros(2**DIGIT, dtype=torch.int64), 2**63, 0
    for piece in pieces:
        bits = _within(piece, shift, leading)
        if len(bits):
            low, high = bits.aminmax()
            least, most = min(least, int(low)), max(most, int(high))
            digits = bits.bitwise_right_shift_(shift - DIGIT).bitwise_and_(2**DIGIT - 1)
            counts = counts.to(bits.device)
            counts.index_add_(0, digits, digits.new_ones(1).expand(len(digits)))
    return counts, least, most


def _smallest(numbers: Tensor, place: int) -> int:
    """The number at `place` of the sorted ones, which are put in another order."""
    if not numbers.is_cpu:
        return int(numbers.kthvalue(place + 1).values)
    numbers.numpy().partition(place)  # seven times as fast
    return int(numbers[place])
