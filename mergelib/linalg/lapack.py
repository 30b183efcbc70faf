"""Gram matrices, and some eigenvectors of a symmetric matrix, on one CPU core a thread.

torch computes whole products and whole decompositions only: twice the work of half a Gram matrix,
and of a few eigenvectors. SciPy's wrappers of BLAS and LAPACK do less, but hold Python's lock, so
that threads wait for each other. SciPy exports the routines to compiled code too
(`scipy.linalg.cython_blas`, `cython_lapack`), and ctypes calls those without the lock.
"""

import ctypes
from collections.abc import Callable
from functools import cache

import torch
from scipy.linalg import cython_blas, cython_lapack
from torch import Tensor

EPS = torch.finfo(torch.float64).eps
BLOCK = 64  # columns of workspace that the blocked routines ask for


@cache
def _routine(name: str) -> Callable[..., None]:
    """A routine of SciPy's, which returns nothing and takes pointers."""
    api = ctypes.pythonapi
    api.PyCapsule_GetName.restype = ctypes.c_char_p
    api.PyCapsule_GetName.argtypes = [ctypes.py_object]
    api.PyCapsule_GetPointer.restype = ctypes.c_void_p
    api.PyCapsule_GetPointer.argtypes = [ctypes.py_object, ctypes.c_char_p]
    capsule = (cython_blas.__pyx_capi__ | cython_lapack.__pyx_capi__)[name]
    address = api.PyCapsule_GetPointer(capsule, api.PyCapsule_GetName(capsule))
    return ctypes.CFUNCTYPE(None)(address)


def _pointer(argument: Tensor | bytes | int | float) -> object:
    if isinstance(argument, Tensor):
        return ctypes.c_void_p(argument.data_ptr())
    if isinstance(argument, bytes):
        return ctypes.c_char_p(argument)
    if isinstance(argument, float):
        return ctypes.byref(ctypes.c_double(argument))
    return ctypes.byref(ctypes.c_int(argument))


def _call(name: str, *arguments: Tensor | bytes | int | float) -> None:
    _routine(name)(*map(_pointer, arguments))


def _solve(name: str, *arguments: Tensor | bytes | int | float) -> None:
    """Call a LAPACK routine, whose last argument, `info`, is added; LinAlgError if it fails."""
    info = torch.zeros(1, dtype=torch.int32)
    _call(name, *arguments, info)
    if info:
        raise torch.linalg.LinAlgError(f"LAPACK's {name} fails with {int(info)}")


def small_gram(tall: Tensor, out: Tensor | None = None) -> Tensor:
    """AᵀA of a float64 matrix (m, n), on its device: (n, n), of which the lower triangle counts.

    On the CPU `out`, if given, is written over and returned.
    """
    if not tall.is_cpu:
        return tall.T @ tall
    m, n = tall.shape
    if tall.stride(0) != 1 or tall.stride(1) < m:  # what is not columns, as BLAS has them, is rows
        tall = tall if tall.stride(1) == 1 and tall.stride(0) >= n else tall.contiguous()
        layout, lead = b"N", tall.stride(0)
    else:
        layout, lead = b"T", tall.stride(1)
    # the upper triangle of its columns is the lower of its rows
    found = tall.new_zeros(n, n) if out is None else out
    sizes = (n, m, 1.0, tall, max(1, lead), 0.0, found, max(1, n))
    _call("dsyrk", b"U", layout, *sizes)
    return found


def eigh(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues, ascending, and eigenvectors of a symmetric matrix (n, n), on its device.

    Found on the CPU: GPU libraries solve matrices of this size one after another.
    """
    values, vectors = torch.linalg.eigh(matrix.cpu())
    return values.to(matrix.device), vectors.to(matrix.device)


class Tridiagonal:
    """A symmetric float64 matrix (n, n) on the CPU as Q T Qᵀ, T tridiagonal.

    Its lower triangle is read, and its memory used. `values` (n,) are the eigenvalues, ascending,
    within about eps ‖A‖.
    Raises LinAlgError where LAPACK fails, or where vectors are asked for and T falls into blocks,
    as it does for a null row or equal values.
    Source: LAPACK's dsytrd, dsterf, dstein, dormtr and dgtsv.
    """

    def __init__(self, matrix: Tensor) -> None:
        n = self.size = len(matrix)
        self._reflectors = matrix.contiguous()
        self._diagonal, self._beside, self._scales = (matrix.new_zeros(n) for _ in range(3))
        parts = (self._diagonal, self._beside, self._scales)
        work = matrix.new_empty(BLOCK * n)
        _solve("dsytrd", b"U", n, self._reflectors, n, *parts, work, len(work))
        self.values = self._diagonal.clone()
        _solve("dsterf", n, self.values, self._beside.clone())
        self._lowest = matrix.new_empty(n, 0)

    def ends(self, low: int, high: int) -> tuple[Tensor, Tensor]:
        """Orthonormal eigenvectors, as columns, of the lowest values and of the highest, ascending:
        (n, low) and (n, high).
        """
        self._lowest = self._of_tridiagonal(0, low)
        highest = self._of_tridiagonal(self.size - high, self.size)
        both = self._turned(torch.cat([self._lowest, highest], dim=1), b"N")
        return both[:, :low], both[:, low:]

    def solve_outside(self, right: Tensor, shifts: Tensor) -> Tensor:
        """x_j = P (A − s_j)⁻¹ P b_j of (n, k), P projecting on all eigenvectors but the lowest.

        Those are the `low` ones that `ends` was last asked for.
        """
        columns = self._outside(self._turned(right, b"T")).T.contiguous()
        for column, shift in zip(columns, shifts.tolist(), strict=True):
            diagonal = self._diagonal - shift
            below, above = self._beside.clone(), self._beside.clone()
            _solve("dgtsv", self.size, 1, below, diagonal, above, column, self.size)
        # A shift is close to one of the lowest values, whose vector rounding brings in.
        return self._turned(self._outside(self._outside(columns.T)), b"N")

    def _outside(self, columns: Tensor) -> Tensor:
        return columns - self._lowest @ (self._lowest.T @ columns)

    def _of_tridiagonal(self, first: int, last: int) -> Tensor:
        """Eigenvectors of T, by inverse iteration, which takes an unreduced T."""
        n, count = self.size, last - first
        size = self._diagonal.abs() + self._beside.abs()
        if n > 1 and not (self._beside[:-1].abs() > EPS * size.max()).all():
            raise torch.linalg.LinAlgError("the tridiagonal matrix falls into blocks")
        values = self.values.roll(-first)
        block, ends = torch.ones(n, dtype=torch.int32), torch.full((n,), n, dtype=torch.int32)
        found, work = values.new_empty(count, n), values.new_empty(5 * n)
        whole, failed = torch.empty(n, dtype=torch.int32), torch.empty(count, dtype=torch.int32)
        matrix = (n, self._diagonal, self._beside, count, values, block, ends)
        _solve("dstein", *matrix, found, n, work, whole, failed)
        return found.T

    def _turned(self, columns: Tensor, transposed: bytes) -> Tensor:
        """Q or Qᵀ times columns (n, k)."""
        held = columns.T.contiguous().clone()  # LAPACK's columns are torch's rows
        n, count = self.size, len(held)
        work = held.new_empty(BLOCK * (count + BLOCK + 1))  # with less it goes column by column
        shape = (b"L", b"U", transposed, n, count)
        _solve("dormtr", *shape, self._reflectors, n, self._scales, held, n, work, len(work))
        return held.T
