"""The projection head: shape, statistics, and the bias that stays zero."""

import torch
from torch import nn

from almosaic.objectives.heads import ProjectionHead, RankBatchNorm1d


def test_projection_head():
    head = ProjectionHead(12, 32, 8).train()
    z = head(torch.randn(64, 12))
    assert z.shape == (64, 8)
    torch.testing.assert_close(z.mean(0), torch.zeros(8), atol=1e-6, rtol=0)
    torch.testing.assert_close(z.var(0, unbiased=False), torch.ones(8), atol=1e-2, rtol=0)
    assert head[1].eps == head[4].eps == 1e-5 and head[1].momentum == 0.1
    assert head[0].bias is None and head[3].bias is None


def test_the_last_bias_is_stored_but_never_trained():
    head = ProjectionHead(4, 8, 2)
    assert "4.bias" in head.state_dict() and "4.bias" not in dict(head.named_parameters())
    assert "1.bias" in dict(head.named_parameters())
    head.load_state_dict(head.state_dict())


def test_one_process_is_plain_batch_norm():
    ours, plain = RankBatchNorm1d(6).train(), nn.BatchNorm1d(6).train()
    x = torch.randn(10, 6)
    torch.testing.assert_close(ours(x), plain(x), rtol=0, atol=0)
    torch.testing.assert_close(ours.state_dict(), plain.state_dict(), rtol=0, atol=0)
    torch.testing.assert_close(ours.eval()(x), plain.eval()(x), rtol=0, atol=0)
