"""From visible tokens to a guess at each masked patch: what masked objectives put behind the encoder."""

from typing import Annotated, cast

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from transformers import initialization as init

from almosaic.encoder.configuration import AudioMosaicConfig
from almosaic.encoder.modeling import Block
from almosaic.encoder.positions import resize_table, sincos_table
from almosaic.masking import PatchGrid, PatchMask
from almosaic.objectives.base import SelfInitialised
from almosaic.settings import Settings

Size = Annotated[int, Field(gt=0)]


class PredictorSettings(Settings):
    """Size of the predictor; the defaults are those of M2D and MATPAC."""

    width: Size = 512
    depth: Size = 8
    heads: Size = 16

    @model_validator(mode="after")
    def _check(self) -> "PredictorSettings":
        if self.width % self.heads or self.width % 4:
            raise ValueError(
                f"expected a predictor width that divides by its heads and by 4, found {self.width} with "
                f"{self.heads} heads: change one of the two"
            )
        return self


class Predictor(SelfInitialised):
    """A narrow ViT over all positions of a window, in which a learned token stands for every masked patch.

    Its positions are sin-cos and never trained. (He et al. 2022, section 3; Niizumi et al. 2023, M2D.)
    """

    positions: Tensor

    def __init__(self, settings: PredictorSettings, encoder_config: AudioMosaicConfig):
        super().__init__()
        width, eps = settings.width, encoder_config.layer_norm_eps
        blocks = AudioMosaicConfig(
            hidden_size=width,
            num_attention_heads=settings.heads,
            intermediate_size=4 * width,
            layer_norm_eps=eps,
        )
        self.grid = encoder_config.grid
        self.embed = nn.Linear(encoder_config.hidden_size, width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.register_buffer("positions", torch.zeros(1, 1 + self.grid.patches, width))
        self.blocks = nn.ModuleList(Block(blocks, 0.0) for _ in range(settings.depth))
        self.norm = nn.LayerNorm(width, eps=eps)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw the mask token and fill the positions."""
        init.normal_(self.mask_token, std=0.02)
        init.copy_(self.positions, sincos_table(self.grid, self.positions.shape[-1]))

    def forward(self, tokens: Tensor, mask: PatchMask, grid: PatchGrid) -> Tensor:
        """Encoder tokens [B, 1+K, D] (CLS first, then `mask.ids_keep`) to [B, M, width] at `mask.ids_masked`.

        `grid` is that of the window, which may be another than the encoder's own.
        """
        visible = self.embed(tokens)
        batch = visible.shape[0]
        fill = self.mask_token.to(visible.dtype).expand(batch, mask.ids_masked.shape[1], -1)
        patches = _take(torch.cat([visible[:, 1:], fill], dim=1), mask.ids_restore)
        x = torch.cat([visible[:, :1], patches], dim=1)
        x = x + resize_table(self.positions, self.grid, grid, "time_frequency").to(x.dtype)
        for block in self.blocks:
            x = block(x)
        return cast(Tensor, self.norm(_take(x[:, 1:], mask.ids_masked)))


def _take(x: Tensor, index: Tensor) -> Tensor:
    """Tokens index [B, n] of x [B, N, D]."""
    return x.gather(1, index[..., None].expand(-1, -1, x.shape[-1]))
