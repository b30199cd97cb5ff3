"""The one view that masked objectives of a single view read, and what its mask hides."""

from typing import NamedTuple

from torch import Tensor

from almosaic.encoder.modeling import AudioMosaicModel
from almosaic.errors import AlmosaicError
from almosaic.masking import PatchGrid, PatchMask
from almosaic.objectives.base import check_views


def only_view(views: list[Tensor], masks: list[PatchMask], objective: str) -> tuple[Tensor, PatchMask]:
    """The view [B, T, F] and its mask, for the objective of this name.

    Raises:
        AlmosaicError: not one view with one mask, or a mask that leaves nothing to predict.
    """
    check_views(views, masks, 1, objective)
    if masks[0].ids_masked.shape[1] == 0:
        raise AlmosaicError(
            f"expected a mask that takes some of the {masks[0].valid.shape[1]} patches for the objective "
            f"{objective}, found one that keeps all: raise its ratio"
        )
    return views[0], masks[0]


class Encoded(NamedTuple):
    """What the encoder made of the visible patches of the only view.

    Attributes:
        view: [B, T, F].
        mask: which of its patches were visible.
        grid: of the view.
        tokens: [B, 1+K, D].
        pooled: [B, D].
    """

    view: Tensor
    mask: PatchMask
    grid: PatchGrid
    tokens: Tensor
    pooled: Tensor


def encode_visible(
    encoder: AudioMosaicModel,
    views: list[Tensor],
    masks: list[PatchMask],
    path_noise: list[Tensor] | None,
    objective: str,
) -> Encoded:
    """Encode the visible patches of the only view; raises what `only_view` does."""
    view, mask = only_view(views, masks, objective)
    noise = None if path_noise is None else path_noise[0]
    encoded = encoder(view, ids_keep=mask.ids_keep, path_noise=noise)
    grid = PatchGrid.of(view.shape[1], view.shape[2], encoder.config.patch_size)
    return Encoded(view, mask, grid, encoded.last_hidden_state, encoded.pooler_output)


def hidden_pixels(view: Tensor, mask: PatchMask, grid: PatchGrid) -> Tensor:
    """Pixels of the masked patches of a view [B, T, F]: [B, M, pixels], float32, time before frequency."""
    patches = grid.patches_of(view.float())
    return patches.gather(1, mask.ids_masked[..., None].expand(-1, -1, patches.shape[-1]))
