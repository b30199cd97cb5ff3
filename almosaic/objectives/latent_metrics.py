"""Whether a teacher's targets still differ: measures without gradient, over all processes."""

import torch
import torch.nn.functional as F
from torch import Tensor

from almosaic.objectives.base import mean_over_clips
from almosaic.objectives.monitors import perplexity
from almosaic.objectives.ranks import sum_ranks


@torch.no_grad()
def target_metrics(targets: Tensor, valid: Tensor) -> dict[str, Tensor]:
    """`target_similarity`: mean cosine of two target tokens [B, M, D] of the batch, where valid [B, M].

    1 where all are one direction, which a student predicts without listening.
    """
    weights = valid.float()
    unit = F.normalize(targets.float(), dim=-1)
    sums = torch.cat([torch.einsum("bm,bmd->d", weights, unit), weights.sum()[None]])
    sums = sum_ranks(sums)
    return {"target_similarity": (sums[:-1] / sums[-1].clamp_min(1.0)).square().sum()}


@torch.no_grad()
def class_metrics(probabilities: Tensor, valid: Tensor) -> dict[str, Tensor]:
    """How the teacher uses its classes: probabilities [B, M, C] of the patches that are valid [B, M].

    `teacher_entropy` is that of one patch (log C where it tells nothing), `classes_used` the exp(entropy) of
    the mean over all patches (1 where they all fall into one class).
    """
    entropy = mean_over_clips(torch.special.entr(probabilities).sum(dim=-1), valid)
    sums = sum_ranks(torch.einsum("bm,bmc->c", valid.to(probabilities.dtype), probabilities))
    return {"teacher_entropy": entropy, "classes_used": perplexity(sums)}


@torch.no_grad()
def hypothesis_metrics(best: Tensor, valid: Tensor, hypotheses: int) -> dict[str, Tensor]:
    """`hypotheses_used`: exp(entropy) of how often each one is the best [B, M] of a valid patch [B, M]."""
    counts = torch.einsum("bm,bmh->h", valid.float(), F.one_hot(best, hypotheses).float())
    return {"hypotheses_used": perplexity(sum_ranks(counts))}
