"""How far apart two clouds of feature vectors lie, and how varied one of them is. All float64, no pictures.

Every function takes rows: x (N, D), y (M, D). Sources stand at each; the tests compare with other
implementations and with clouds whose answer is known.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch

from vitrail.errors import InputError

__all__ = [
    "KernelSums",
    "Prdc",
    "frechet_distance",
    "kernel_distance",
    "mean_pairwise_distance",
    "prdc",
    "prdc_from",
    "squared_distances",
    "vendi_score",
]

Matrix = np.ndarray[Any, np.dtype[np.float64]]
Rows = np.ndarray[Any, np.dtype[np.int64]]


def _checked(*clouds: Matrix, least: int = 2) -> None:
    for cloud in clouds:
        if cloud.ndim != 2 or len(cloud) < least or not np.isfinite(cloud).all():
            raise InputError(f"features must be (N, D), finite, N >= {least}; got shape {cloud.shape}")
    if len({cloud.shape[1] for cloud in clouds}) > 1:
        raise InputError("the two sets have features of different length")


def _root(x: Matrix) -> Matrix:
    """Return R (K, D), K <= D, with R' R = the unbiased covariance of x: the small factor of centred x."""
    centred = x - x.mean(axis=0)
    if len(centred) > centred.shape[1]:
        centred = np.linalg.qr(centred, mode="r")
    root: Matrix = centred / np.sqrt(len(x) - 1)
    return root


def frechet_distance(x: Matrix, y: Matrix, *, exact: bool = True) -> float:
    """Return the squared Frechet distance of the Gaussians fitted to the two clouds.

    ``|mx - my|^2 + tr(Sx + Sy - 2 (Sx Sy)^(1/2))`` (Dowson & Landau, Journal of Multivariate Analysis 12
    (1982) 450-455; Heusel et al., arXiv:1706.08500). With ``Sx = Rx' Rx`` and ``Sy = Ry' Ry`` the trace of
    the root is the sum of the singular values of ``Rx Ry'``: no root of a non-symmetric, singular matrix has
    to be taken, and nothing is added to a diagonal. It is biased upwards by few pictures.

    exact: False takes the singular values from eigenvalues of the product with its transpose, several times
    faster and good to about 1e-6 of the largest; enough for intervals.
    """
    _checked(x, y)
    means = ((x.mean(axis=0) - y.mean(axis=0)) ** 2).sum()
    root_x, root_y = _root(x), _root(y)
    product = torch.from_numpy(root_x @ root_y.T)
    if exact:
        overlap = float(torch.linalg.svdvals(product).sum())
    else:
        if product.shape[0] > product.shape[1]:
            product = product.T
        overlap = float(torch.linalg.eigvalsh(product @ product.T).clamp_min(0).sqrt().sum())
    return float(means + (root_x**2).sum() + (root_y**2).sum() - 2 * overlap)


def _cubic(x: Matrix, y: Matrix) -> Matrix:
    kernel: Matrix = (x @ y.T / x.shape[1] + 1) ** 3
    return kernel


def kernel_distance(x: Matrix, y: Matrix) -> float:
    """Return the unbiased squared maximum mean discrepancy with the kernel ``(a.b / D + 1)^3``.

    Binkowski et al., "Demystifying MMD GANs", arXiv:1801.01401 (there called KID, over Inception features and
    averaged over subsets; this is the same expectation over all pictures at once). Unbiased: its mean does
    not depend on the number of pictures, and for two samples of one source it is 0, so single values can be
    slightly negative.
    """
    return KernelSums(x, y).distance()


class KernelSums:
    """The sums behind :func:`kernel_distance`, so that it can be had again without some rows at little cost.

    Leaving out the rows I of x takes ``2 sum_I r_i - sum_II k`` off the sum within x, r being row sums: only
    the small square of what is left out has to be computed again.
    """

    def __init__(self, x: Matrix, y: Matrix) -> None:
        _checked(x, y)
        self.x, self.y = x, y
        self._within = [self._row_sums(cloud) for cloud in (x, y)]
        self._across_x, self._across_y = np.zeros(len(x)), np.zeros(len(y))
        for i in range(0, len(x), 1024):
            table = _cubic(x[i : i + 1024], y)
            self._across_x[i : i + 1024] = table.sum(axis=1)
            self._across_y += table.sum(axis=0)

    @staticmethod
    def _row_sums(x: Matrix) -> Matrix:
        """Sum of the kernel of each row with all others."""
        sums = [_cubic(x[i : i + 1024], x).sum(axis=1) for i in range(0, len(x), 1024)]
        return np.concatenate(sums) - _own(x)

    def distance(self, without_x: Rows | None = None, without_y: Rows | None = None) -> float:
        """Return the kernel distance of the two clouds without those rows."""
        gone_x = np.empty(0, np.int64) if without_x is None else without_x
        gone_y = np.empty(0, np.int64) if without_y is None else without_y
        value = 0.0
        for cloud, sums, gone in zip((self.x, self.y), self._within, (gone_x, gone_y), strict=True):
            left = len(cloud) - len(gone)
            total = sums.sum() - 2 * sums[gone].sum() + _sum_off_diagonal(cloud[gone])
            value += float(total) / (left * (left - 1))
        across = self._across_x.sum() - self._across_x[gone_x].sum() - self._across_y[gone_y].sum()
        across += _cubic(self.x[gone_x], self.y[gone_y]).sum()
        pairs = (len(self.x) - len(gone_x)) * (len(self.y) - len(gone_y))
        return value - 2 * float(across) / pairs


def _own(x: Matrix) -> Matrix:
    """The kernel of each row with itself, (N,)."""
    own: Matrix = ((x**2).sum(axis=1) / x.shape[1] + 1) ** 3
    return own


def _sum_off_diagonal(x: Matrix) -> float:
    total = sum(_cubic(x[i : i + 1024], x).sum() for i in range(0, len(x), 1024))
    return float(total - _own(x).sum())


def squared_distances(x: Matrix, y: Matrix) -> Matrix:
    """Return squared Euclidean distances (N, M), never negative."""
    table: Matrix = (x**2).sum(axis=1)[:, None] + (y**2).sum(axis=1)[None] - 2 * (x @ y.T)
    np.maximum(table, 0, out=table)
    return table


class Prdc(NamedTuple):
    """Precision and recall (Kynkaanniemi et al., arXiv:1904.06991), density and coverage (Naeem et al.,
    arXiv:2002.09797) of generated pictures.

    precision: share of generated pictures within reach of some real one.  recall: share of real pictures
    within reach of some generated one.  density: how many real pictures a generated one is within reach of,
    divided by k.  coverage: share of real pictures whose reach holds a generated one. The reach of a picture
    is the distance to its k-th nearest neighbour in its own set.
    """

    precision: float
    recall: float
    density: float
    coverage: float


def prdc(real: Matrix, fake: Matrix, k: int = 5) -> Prdc:
    """Return precision, recall, density and coverage of ``fake`` (N, D) against ``real`` (M, D)."""
    _checked(real, fake, least=k + 1)
    return prdc_from(
        squared_distances(real, real), squared_distances(fake, fake), squared_distances(real, fake), k
    )


def prdc_from(within_real: Matrix, within_fake: Matrix, across: Matrix, k: int) -> Prdc:
    """As :func:`prdc`, from squared distances: (M, M), (N, N) and (M, N)."""
    # Element k of a sorted row is the k-th neighbour: element 0 is the picture itself.
    reach_real = np.partition(within_real, k, axis=1)[:, k]
    reach_fake = np.partition(within_fake, k, axis=1)[:, k]
    inside = across <= reach_real[:, None]
    return Prdc(
        precision=float(inside.any(axis=0).mean()),
        recall=float((across <= reach_fake[None]).any(axis=1).mean()),
        density=float(inside.sum(axis=0).mean() / k),
        coverage=float(inside.any(axis=1).mean()),
    )


def vendi_score(x: Matrix) -> float:
    """Return the effective number of different pictures, 1 to N.

    Friedman & Dieng, "The Vendi Score", arXiv:2210.02410: the exponential of the Shannon entropy of the
    eigenvalues of K / N, where K holds the cosine similarities. N equal pictures give 1, N orthogonal ones N.
    Rows of length 0 raise :class:`InputError`. It grows with N: compare at the same N only.
    """
    _checked(x, least=1)
    unit = _unit(x)
    # K / N and X' X / N have the same eigenvalues above 0; the smaller matrix is taken.
    gram = unit @ unit.T if len(unit) <= unit.shape[1] else unit.T @ unit
    values = torch.linalg.eigvalsh(torch.from_numpy(gram / len(unit))).numpy()
    values = values[values > 1e-15]
    return float(np.exp(-(values * np.log(values)).sum()))


def mean_pairwise_distance(x: Matrix) -> float:
    """Return the mean of ``1 - cosine`` over all pairs of different pictures; 0 where all are alike."""
    _checked(x)
    unit, n = _unit(x), len(x)
    return float(1 - ((unit.sum(axis=0) ** 2).sum() - n) / (n * (n - 1)))


def _unit(x: Matrix) -> Matrix:
    length = np.linalg.norm(x, axis=1, keepdims=True)
    if not (length > 0).all():
        raise InputError("a feature vector has length 0; cosine similarity is undefined for it")
    unit: Matrix = x / length
    return unit
