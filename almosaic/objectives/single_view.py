"""The one view that masked objectives of a single view read, and what its mask hides."""

from torch import Tensor

from almosaic.errors import AlmosaicError
from almosaic.masking import PatchGrid, PatchMask


def only_view(views: list[Tensor], masks: list[PatchMask], objective: str) -> tuple[Tensor, PatchMask]:
    """The view [B, T, F] and its mask, for the objective of this name.

    Raises:
        AlmosaicError: not one view with one mask, or a mask that leaves nothing to predict.
    """
    if len(views) != 1 or len(masks) != 1:
        raise AlmosaicError(
            f"expected 1 view with 1 mask for the objective {objective}, found {len(views)} views and "
            f"{len(masks)} masks: name one view in the recipe"
        )
    if masks[0].ids_masked.shape[1] == 0:
        raise AlmosaicError(
            f"expected a mask that takes some of the {masks[0].valid.shape[1]} patches for the objective "
            f"{objective}, found one that keeps all: raise its ratio"
        )
    return views[0], masks[0]


def hidden_pixels(view: Tensor, mask: PatchMask, grid: PatchGrid) -> Tensor:
    """Pixels of the masked patches of a view [B, T, F]: [B, M, pixels], float32, time before frequency."""
    patches = grid.patches_of(view.float())
    return patches.gather(1, mask.ids_masked[..., None].expand(-1, -1, patches.shape[-1]))
