"""What may stand in place of an activation, so that its reconstruction can be compared with something?

With x the activation, x~ its reconstruction, e = x~ - x, epsilon = |e|, u = x/|x|, c = cos(x, x~), and z ~ N(0, I)
drawn for each token:

    reconstruction          x~
    norm-corrected          x~ |x| / |x~|
    norm only               x |x~| / |x|
    ε-random                x + epsilon z/|z|
    θ-random, SAE norm      |x~| (c u + sqrt(1 - c²) o),    o = unit(z - (z.u) u)
    θ-random, true norm     |x| (c u + sqrt(1 - c²) o)
    zero, batch mean, data mean
    covariance mixture      x + epsilon unit(Σ^½ z)          unit(a - b) of a, b ~ N(μ, Σ)
    real mixture            x + epsilon unit(x_i - x_j)      two activations from elsewhere
    shuffled error          x + epsilon unit(e_j)            the error made at another token
    ... same position       the same, of a token at the same position of another sequence
    parallel kept           x + (e.u) u + |e - (e.u) u| unit(w - (w.u) u),    w = Σ^½ z

The first nine are Gurnee's (2024), the mixtures Lee and Heimersheim's (2024): they never contain x, so that a step
along them does not erase it. θ-random at SAE norm has the reconstruction's norm, angle and distance; it is also what
"parallel kept" is with isotropic w. All functions act on the last dimension and broadcast over leading ones; draws
come first.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import normalize

from dictlab.data.activations import Moments

SHRINKAGE = 1e-4  # of the mean variance, added to every direction of the covariance

X = Float[Tensor, "*tokens d_in"]
Draws = Float[Tensor, "draws *tokens d_in"]


class SiteStatistics(NamedTuple):
    """Moments of the activations at a site, and activations of other sequences there.

    Attributes:
        mean: Mean activation.
        covariance_root: Symmetric square root of the covariance, shrunk towards isotropy.
        pool: Activations of whole sequences of the training split.
        counted: Tokens of the pool that count; the others are drawn from nowhere.
    """

    mean: Float[Tensor, " d_in"]
    covariance_root: Float[Tensor, "d_in d_in"]
    pool: Float[Tensor, "sequences context d_in"]
    counted: Bool[Tensor, "sequences context"]

    @property
    def spread(self) -> float:
        """Root mean square distance of an activation from the mean."""
        return float(self.covariance_root.double().square().sum().sqrt())


def site_statistics(
    moments: Moments,
    pool: Float[Tensor, "sequences context d_in"],
    counted: Bool[Tensor, "sequences context"] | None = None,
) -> SiteStatistics:
    """Mean, root of the shrunk covariance, and the pool.

    Args:
        moments: With covariance; of activations without those of first positions, whose norm would dominate it.
        pool: Activations of whole sequences.
        counted: Tokens of the pool that count; all by default.
    """
    assert moments.covariance is not None
    sigma = moments.covariance.double()
    sigma = sigma + SHRINKAGE * sigma.trace() / len(sigma) * torch.eye(len(sigma), dtype=sigma.dtype).to(sigma)
    values, vectors = torch.linalg.eigh(sigma)
    root = (vectors * values.clamp_min(0).sqrt()) @ vectors.T
    counted = torch.ones(pool.shape[:2], dtype=torch.bool, device=pool.device) if counted is None else counted
    return SiteStatistics(moments.mean.to(pool), root.to(pool), pool, counted)


class ErrorSample(NamedTuple):
    """Activations with their reconstructions, and what random replacements are drawn from.

    Attributes:
        x: Activations of a batch of sequences.
        x_hat: Their reconstructions.
        site_statistics: Of the site.
        pool_errors: Errors of the same dictionary on the pool.
        generator: Of the random replacements.
        n_draws: Draws of each of them.
        counted: Tokens that count, and are replaced; None for all.
    """

    x: Float[Tensor, "batch context d_in"]
    x_hat: Float[Tensor, "batch context d_in"]
    site_statistics: SiteStatistics
    pool_errors: Float[Tensor, "sequences context d_in"]
    generator: torch.Generator
    n_draws: int
    counted: Bool[Tensor, "batch context"] | None = None

    @property
    def error(self) -> Float[Tensor, "batch context d_in"]:
        """x~ - x."""
        return self.x_hat - self.x

    def first(self, sequences: int) -> ErrorSample:
        """Its first sequences."""
        counted = None if self.counted is None else self.counted[:sequences]
        return self._replace(x=self.x[:sequences], x_hat=self.x_hat[:sequences], counted=counted)

    def batch_mean(self) -> Float[Tensor, " d_in"]:
        """The mean of the activations of the batch that count."""
        rows = self.x.flatten(0, -2) if self.counted is None else self.x[self.counted]
        return rows.mean(dim=0)

    def normal(self) -> Float[Tensor, "draws batch context d_in"]:
        """z: fresh normal numbers for each token and draw."""
        drawn = torch.randn(self.n_draws, *self.x.shape, generator=self.generator)
        return drawn.to(self.x)

    def integers(self, low: int, high: int) -> Int[Tensor, "draws batch context"]:
        """Fresh integers from `low` to below `high` for each token and draw."""
        drawn = torch.randint(low, high, (self.n_draws, *self.x.shape[:-1]), generator=self.generator)
        return drawn.to(self.x.device)


def norm_of(x: X) -> Float[Tensor, "*tokens 1"]:
    """|x|, with a last dimension of 1."""
    norm: Tensor = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return norm


def orthogonal_part(x: X, direction: X) -> X:
    """The part of `direction` that is orthogonal to x."""
    u = normalize(x, dim=-1)
    # twice: what rounding leaves along x after the first time matters where |direction| is mostly along x
    for _ in range(2):
        direction = direction - (direction * u).sum(dim=-1, keepdim=True) * u
    return direction


def norm_corrected(x: X, x_hat: X) -> X:
    """The reconstruction at the activation's norm."""
    return normalize(x_hat, dim=-1) * norm_of(x)


def norm_only(x: X, x_hat: X) -> X:
    """The activation at the reconstruction's norm."""
    return normalize(x, dim=-1) * norm_of(x_hat)


def at_distance(x: X, x_hat: X, direction: Draws) -> Draws:
    """As far from x as the reconstruction is, in other directions."""
    return x + norm_of(x_hat - x) * normalize(direction, dim=-1)


def at_angle(x: X, x_hat: X, direction: Draws) -> Draws:
    """With the reconstruction's norm, angle and distance from x, turned to another side."""
    u = normalize(x, dim=-1)
    along = (x_hat * u).sum(dim=-1, keepdim=True)
    return along * u + norm_of(orthogonal_part(x, x_hat)) * normalize(orthogonal_part(x, direction), dim=-1)


def at_angle_and_norm(x: X, x_hat: X, direction: Draws) -> Draws:
    """With the reconstruction's angle and the activation's norm, turned to another side."""
    return norm_corrected(x, at_angle(x, x_hat, direction))


def covariance_noise(sample: ErrorSample) -> Draws:
    """Directions with the covariance of the activations."""
    return sample.normal() @ sample.site_statistics.covariance_root


def real_difference(sample: ErrorSample) -> Draws:
    """Differences of two activations of the pool, neither from a first position."""
    pool = sample.site_statistics.pool[:, 1:][sample.site_statistics.counted[:, 1:]]
    first = sample.integers(0, len(pool))
    other = (first + sample.integers(1, len(pool))) % len(pool)
    return pool[first] - pool[other]


def shuffled_error(sample: ErrorSample) -> Draws:
    """Errors made at tokens of the pool, none from a first position."""
    errors = sample.pool_errors[:, 1:][sample.site_statistics.counted[:, 1:]]
    return errors[sample.integers(0, len(errors))]


def shuffled_error_at_position(sample: ErrorSample) -> Draws:
    """Errors made at the same position of sequences of the pool, drawn among those in which it counts.

    At a position that counts in no sequence of the pool, errors made anywhere in it.
    """
    positions = torch.arange(sample.x.shape[-2], device=sample.x.device)
    drawn, counted = sample.integers(0, len(sample.pool_errors)), sample.site_statistics.counted
    errors = sample.pool_errors[drawn, positions]
    again = ~counted[drawn, positions]
    if again.any():
        number = counted.sum(dim=0)  # sequences of the pool in which each position counts
        order = (~counted).long().argsort(dim=0, stable=True)  # those first
        share = torch.rand(drawn.shape, generator=sample.generator).to(sample.x)
        among = order[(share * number).long().clamp(max=len(counted) - 1), positions]
        other = torch.where((number > 0)[:, None], sample.pool_errors[among, positions], shuffled_error(sample))
        errors = torch.where(again[..., None], other, errors)
    return errors


class Intervention(NamedTuple):
    """A replacement of the activation.

    Attributes:
        make: From a sample to replacements of its activations, `[draws, batch, context, d_in]`.
        random: Whether it differs from draw to draw; the others have one.
        distance: Whether it lies as far from x as the reconstruction, and so is a baseline for it.
    """

    make: Callable[[ErrorSample], Draws]
    random: bool = False
    distance: bool = False


RECONSTRUCTION, ISOTROPIC, COVARIANCE = "reconstruction", "ε-random", "covariance mixture"
REAL, SHUFFLED, PARALLEL = "real mixture", "shuffled error", "parallel kept, covariance"
INTERVENTIONS = {
    RECONSTRUCTION: Intervention(lambda g: g.x_hat[None]),
    "norm-corrected": Intervention(lambda g: norm_corrected(g.x, g.x_hat)[None]),
    "norm only": Intervention(lambda g: norm_only(g.x, g.x_hat)[None]),
    ISOTROPIC: Intervention(lambda g: at_distance(g.x, g.x_hat, g.normal()), True, True),
    "θ-random, SAE norm": Intervention(lambda g: at_angle(g.x, g.x_hat, g.normal()), True, True),
    "θ-random, true norm": Intervention(lambda g: at_angle_and_norm(g.x, g.x_hat, g.normal()), True),
    COVARIANCE: Intervention(lambda g: at_distance(g.x, g.x_hat, covariance_noise(g)), True, True),
    REAL: Intervention(lambda g: at_distance(g.x, g.x_hat, real_difference(g)), True, True),
    SHUFFLED: Intervention(lambda g: at_distance(g.x, g.x_hat, shuffled_error(g)), True, True),
    f"{SHUFFLED}, same position": Intervention(
        lambda g: at_distance(g.x, g.x_hat, shuffled_error_at_position(g)), True, True
    ),
    PARALLEL: Intervention(lambda g: at_angle(g.x, g.x_hat, covariance_noise(g)), True, True),
    "data mean": Intervention(lambda g: g.site_statistics.mean.expand_as(g.x)[None]),
    "batch mean": Intervention(lambda g: g.batch_mean().expand_as(g.x)[None]),
    "zero": Intervention(lambda g: torch.zeros_like(g.x)[None]),
}
NAMES = tuple(INTERVENTIONS)
BASELINES = tuple(name for name, intervention in INTERVENTIONS.items() if intervention.distance)
# Steps of any length are taken along these, to see at which length each does the reconstruction's damage.
STEPS: dict[str, Callable[[ErrorSample], Draws]] = {
    ISOTROPIC: ErrorSample.normal,
    COVARIANCE: covariance_noise,
    REAL: real_difference,
    SHUFFLED: shuffled_error,
}
