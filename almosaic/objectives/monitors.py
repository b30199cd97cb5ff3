"""What a representation looks like while it is trained: measures without gradient, over all processes."""

import torch
from torch import Tensor

from almosaic.objectives.ranks import gather_ranks


@torch.no_grad()
def representation_metrics(features: Tensor, neighbours: int | None) -> dict[str, Tensor]:
    """`effective_rank`, `lid_mean` and `lid_var` over the rows of all processes.

    Args:
        features: [n, D] pooled vectors of this process, as many on each.
        neighbours: for `intrinsic_dimensions`, at most all but two rows; None leaves these out, and so do
            fewer than four rows, which have no two neighbours each.
    """
    with torch.autocast(features.device.type, enabled=False):
        features = features.detach().float()
        everyone = gather_ranks(features).flatten(0, 1)
        metrics = {"effective_rank": effective_rank(everyone).float()}
        if neighbours is not None and len(everyone) > 3:
            local = intrinsic_dimensions(features, everyone, min(neighbours, len(everyone) - 2))
            dimensions = gather_ranks(local).flatten()
            metrics |= {"lid_mean": dimensions.mean(), "lid_var": dimensions.var()}
    return metrics


def intrinsic_dimensions(features: Tensor, reference: Tensor, neighbours: int) -> Tensor:
    """Local intrinsic dimension [n] of each row of features [n, D] by the method of moments.

    With the distances d_1 <= d_2 ... of a row to the others of reference [m, D], which holds it too, and
    a = mean(d_1 .. d_(k-1)) for k neighbours, it is a / (d_k - a), as in the released code (Amsaleg et al.,
    2015). 0 where all points are one.
    """
    centre = reference.mean(dim=0)  # distances stay, and lose fewer digits in the matrix product
    distances = torch.cdist(features - centre, reference - centre)
    nearest = distances.topk(neighbours + 1, largest=False).values[:, 1:]  # without the row itself
    mean = nearest[:, :-1].mean(dim=1)
    return mean / (nearest[:, -1] - mean).clamp_min(torch.finfo(mean.dtype).tiny)


def effective_rank(features: Tensor) -> Tensor:
    """The number of directions that features [n, D] use: 1 for a line, up to min(n - 1, D); a scalar.

    exp(entropy) of the singular values of the centred rows, taken as a distribution (Roy and Vetterli, 2007).
    They come from the smaller Gram matrix, in float64 since it squares them. NaN if a feature is not finite.
    """
    rows = features.double()
    rows = rows - rows.mean(dim=0)
    gram = rows.T @ rows if rows.shape[0] > rows.shape[1] else rows @ rows.T
    squares = torch.linalg.eigvalsh(gram.nan_to_num(0.0, 0.0, 0.0))  # which refuses NaN
    return perplexity(squares.clamp_min(0.0).sqrt()) + 0.0 * gram.sum()


def perplexity(weights: Tensor) -> Tensor:
    """exp(entropy) of weights [..., n], each row as a distribution: [...]; 1 where all are 0."""
    shares = weights / weights.sum(dim=-1, keepdim=True).clamp_min(torch.finfo(weights.dtype).tiny)
    entropy: Tensor = torch.special.entr(shares).sum(dim=-1)
    return entropy.exp()
