"""The AudioMosaic encoder: a pre-norm ViT that reads only the patches it is given.

Parameter names are those of the published checkpoints, so a released state dict loads key by key. Switches of
the config make it the encoder of MATPAC, M2D or AudioMAE. It knows no mask strategy, loss, label or text.
"""

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPooling

from almosaic.encoder.configuration import AudioMosaicConfig
from almosaic.encoder.positions import resize_table, sincos_table
from almosaic.errors import AlmosaicError
from almosaic.masking import PatchGrid


def _norm(config: AudioMosaicConfig, wanted: bool = True) -> nn.Module:
    """A LayerNorm of the encoder's width, or nothing."""
    return nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps) if wanted else nn.Identity()


class PatchEmbed(nn.Module):
    """Linear map of square patches, then LayerNorm: [B, T, F] -> [B, N, D], or [B, K, D] of those kept."""

    def __init__(self, config: AudioMosaicConfig):
        super().__init__()
        self.patch_size = config.patch_size
        size = (config.patch_size, config.patch_size)
        self.proj = nn.Conv2d(1, config.hidden_size, kernel_size=size, stride=size)
        self.norm = _norm(config, config.patch_norm)

    def forward(self, input_features: Tensor, ids_keep: Tensor | None = None) -> Tensor:
        """Embed the patches of [B, T, F] in time-major order, or those in ids_keep [B, K]."""
        _, frames, bins = input_features.shape
        weight, grid = self.proj.weight, PatchGrid.of(frames, bins, self.patch_size)
        patches = grid.patches_of(input_features.to(weight.dtype))
        if ids_keep is not None:
            patches = patches.gather(1, ids_keep[..., None].expand(-1, -1, patches.shape[-1]))
        # The convolution as a matrix product: only visible patches are embedded, and it is faster.
        return cast(Tensor, self.norm(F.linear(patches, weight.flatten(1), self.proj.bias)))


class DropPath(nn.Module):
    """Leave out a residual branch per sample with probability `rate`, in training."""

    def __init__(self, rate: float):
        super().__init__()
        self.rate = rate

    def forward(self, branch: Tensor, noise: Tensor | None) -> Tensor:
        """Scale the kept rows of [B, L, D] so that the mean stays; row b is kept where noise [B] >= rate."""
        if not self.training or self.rate == 0.0:
            return branch
        assert noise is not None, "the encoder draws the noise of all its blocks"
        kept = (noise >= self.rate).to(branch.dtype)[:, None, None]
        return branch * kept / (1.0 - self.rate)


class Attention(nn.Module):
    """Multi-head self-attention with one qkv projection: [B, L, D] -> [B, L, D]."""

    def __init__(self, config: AudioMosaicConfig):
        super().__init__()
        self.heads = config.num_attention_heads
        self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.proj = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        """Every token attends to every token it is given."""
        batch, length, width = x.shape
        qkv = self.qkv(x).reshape(batch, length, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        heads = F.scaled_dot_product_attention(q, k, v)
        return cast(Tensor, self.proj(heads.transpose(1, 2).reshape(batch, length, width)))


class MLP(nn.Module):
    """Linear, GELU (erf), Linear."""

    def __init__(self, config: AudioMosaicConfig):
        super().__init__()
        inner = cast(int, config.intermediate_size)
        self.fc1 = nn.Linear(config.hidden_size, inner)
        self.fc2 = nn.Linear(inner, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        """[B, L, D] -> [B, L, D]."""
        return cast(Tensor, self.fc2(F.gelu(self.fc1(x))))


class Block(GradientCheckpointingLayer):  # type: ignore[misc]
    """Pre-norm transformer block with drop path on both branches."""

    def __init__(self, config: AudioMosaicConfig, drop_path: float):
        super().__init__()
        self.norm1 = _norm(config)
        self.attn = Attention(config)
        self.norm2 = _norm(config)
        self.mlp = MLP(config)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, path_noise: Tensor | None = None) -> Tensor:
        """[B, L, D] -> [B, L, D]; uniforms path_noise [B, 2] decide which branches of a row are left out."""
        attention, mlp = (None, None) if path_noise is None else path_noise.unbind(dim=1)
        x = x + self.drop_path(self.attn(self.norm1(x)), attention)
        return cast(Tensor, x + self.drop_path(self.mlp(self.norm2(x)), mlp))


class AudioMosaicPreTrainedModel(PreTrainedModel):  # type: ignore[misc]
    """What all AudioMosaic models share: config class, initialisation, loading and saving."""

    config_class = AudioMosaicConfig
    base_model_prefix = "encoder"
    main_input_name = "input_features"
    input_modalities = ("audio",)
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = False  # losses are means over the batch, not sums over tokens
    _no_split_modules = ("Block",)
    _supports_sdpa = True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Truncated normal matrices, zero biases, sin-cos positions, as the released training code."""
        if isinstance(module, nn.Linear | nn.Conv2d):
            is_head = module is getattr(self, "head", None)
            init.trunc_normal_(module.weight, std=2.5e-5 if is_head else self.config.initializer_range)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, AudioMosaicModel):
            init.normal_(module.cls_token, std=1e-6)
            init.copy_(module.pos_embed, sincos_table(self.config.grid, self.config.hidden_size))
        else:
            super()._init_weights(module)


class AudioMosaicModel(AudioMosaicPreTrainedModel):
    """Spectrogram windows to tokens and one vector per window."""

    # The heads of a pretraining or classifier folder: an encoder may be loaded from one.
    _keys_to_ignore_on_load_unexpected = (r"^objective\.", r"^readout\.", r"^fc_norm\.", r"^head\.")
    pos_embed: Tensor

    def __init__(self, config: AudioMosaicConfig):
        super().__init__(config)
        width, depth = config.hidden_size, config.num_hidden_layers
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        positions = torch.zeros(1, 1 + config.grid.patches, width)
        if config.fixed_positions:
            self.register_buffer("pos_embed", positions)
        else:
            self.pos_embed = nn.Parameter(positions)
        self.patch_embed = PatchEmbed(config)
        self.norm_pre = _norm(config, config.pre_norm)
        rates = [config.drop_path_rate * i / max(1, depth - 1) for i in range(depth)]
        self.drops_paths = max(rates) > 0
        self.blocks = nn.ModuleList(Block(config, rate) for rate in rates)
        self.norm = _norm(config, config.final_norm == "layernorm")
        self.post_init()

    def forward(
        self,
        input_features: Tensor,
        ids_keep: Tensor | None = None,
        input_features_mask: Tensor | None = None,
        output_hidden_states: bool = False,
        path_noise: Tensor | None = None,
        dropped_positions: Tensor | None = None,
    ) -> BaseModelOutputWithPooling:
        """Encode windows; masked tokens are left out before the blocks.

        Args:
            input_features: [B, T, F] normalised log-mel windows; T may differ from the stored position table.
            ids_keep: [B, K] int64 patches to keep, in the order the tokens come out; all when None.
            input_features_mask: [B, T] bool, True for real frames; attention ignores it, `mean_valid` pooling
                uses it.
            output_hidden_states: also return the depth + 1 inputs and outputs of the blocks.
            path_noise: [B, depth, 2] uniforms for drop path in training, drawn here when None. Rows of the
                same noise lose the same branches, whatever batch they come in and when they are recomputed.
            dropped_positions: [B, K] bool, True for patches that are given without their position.

        Returns:
            `last_hidden_state` [B, 1+K, D] (index 0 = CLS), `pooler_output` [B, D], `hidden_states`.

        Raises:
            AlmosaicError: shapes that do not fit the config.
        """
        noise = self._path_noise(input_features.shape[0], path_noise)
        x = self.embed(input_features, ids_keep, dropped_positions)
        hidden_states = [x]
        for block, block_noise in zip(self.blocks, noise, strict=True):
            x = block(x, block_noise)
            hidden_states.append(x)
        x = self.norm(x)
        return BaseModelOutputWithPooling(
            last_hidden_state=x,
            pooler_output=self.pool(x, ids_keep, input_features_mask),
            hidden_states=tuple(hidden_states) if output_hidden_states else None,
        )

    def draw_path_noise(self, rows: int) -> Tensor | None:
        """Uniforms [rows, depth, 2] for `path_noise`; None where nothing is left out (eval, all rates 0)."""
        if not self.training or not self.drops_paths:
            return None
        return torch.rand(rows, len(self.blocks), 2, device=self.cls_token.device)

    def _path_noise(self, rows: int, given: Tensor | None) -> Sequence[Tensor | None]:
        """One [B, 2] or None per block; AlmosaicError where the given noise does not fit."""
        shape = [rows, len(self.blocks), 2]
        if given is not None and list(given.shape) != shape:
            raise AlmosaicError(
                f"expected path_noise {shape} (rows, blocks, branches), found {list(given.shape)}: "
                "draw one row per window"
            )
        noise = self.draw_path_noise(rows) if given is None else given
        return [None] * len(self.blocks) if noise is None else noise.unbind(dim=1)

    def embed(
        self,
        input_features: Tensor,
        ids_keep: Tensor | None = None,
        dropped_positions: Tensor | None = None,
    ) -> Tensor:
        """What the blocks read, [B, 1+K, D]: CLS and visible patches with their positions, normalised.

        The arguments, and what they raise, are those of `forward`.
        """
        grid = self._grid_of(input_features, ids_keep)
        table = resize_table(self.pos_embed, self.config.grid, grid, self.config.position_resize)
        positions = table[:, 1:] if ids_keep is None else F.embedding(ids_keep, table[0, 1:])
        if dropped_positions is not None:
            shape = [input_features.shape[0], positions.shape[1]]
            if list(dropped_positions.shape) != shape:
                raise AlmosaicError(
                    f"expected dropped_positions {shape} (one per visible patch), found "
                    f"{list(dropped_positions.shape)}: draw one row per window"
                )
            positions = positions.masked_fill(dropped_positions[..., None], 0.0)
        patches = self.patch_embed(input_features, ids_keep) + positions
        cls = (self.cls_token + table[:, :1]).to(patches.dtype).expand(patches.shape[0], -1, -1)
        return cast(Tensor, self.norm_pre(torch.cat([cls, patches], dim=1)))

    def pool(
        self, tokens: Tensor, ids_keep: Tensor | None = None, input_features_mask: Tensor | None = None
    ) -> Tensor:
        """Tokens of any block [B, 1+K, D] -> [B, D] by the config's `pooling`; see `forward` for the rest."""
        if self.config.pooling == "cls":
            return tokens[:, 0]
        if self.config.pooling == "mean" or input_features_mask is None:
            return tokens.mean(dim=1)
        frames, bins, size = input_features_mask.shape[1], self.config.num_mel_bins, self.config.patch_size
        valid = PatchGrid.of(frames, bins, size).valid_patches(input_features_mask)
        if ids_keep is not None:
            valid = valid.gather(1, ids_keep)
        weights = F.pad(valid, (1, 0), value=True).to(tokens.dtype)
        return torch.einsum("bl,bld->bd", weights / weights.sum(dim=1, keepdim=True), tokens)

    def _grid_of(self, input_features: Tensor, ids_keep: Tensor | None) -> PatchGrid:
        """Patch grid of the input; AlmosaicError where its shape, or that of ids_keep, does not fit."""
        bins, size = self.config.num_mel_bins, self.config.patch_size
        shape = list(input_features.shape)
        if len(shape) != 3 or shape[2] != bins or shape[1] == 0 or shape[1] % size:
            raise AlmosaicError(
                f"expected input_features [B, T, {bins}] with T a multiple of {size} (the config's windows: "
                f"{self.config.window_frames}), found {shape}: use the feature extractor saved with the model"
            )
        if ids_keep is not None and (ids_keep.ndim != 2 or ids_keep.shape[0] != shape[0]):
            raise AlmosaicError(
                f"expected ids_keep [{shape[0]}, K] for input_features {shape}, "
                f"found {list(ids_keep.shape)}: draw one mask row per window"
            )
        return PatchGrid.of(shape[1], bins, size)
