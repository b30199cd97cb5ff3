"""Architecture of the encoder, saved beside its weights, and the recipe settings that choose it."""

from typing import Annotated, Any, Literal, get_args

from pydantic import Field
from transformers import PreTrainedConfig

from almosaic.errors import AlmosaicError
from almosaic.masking import PatchGrid
from almosaic.settings import Settings

Preset = Literal["tiny", "small", "base"]
FinalNorm = Literal["none", "layernorm"]
Pooling = Literal["mean", "mean_valid", "cls"]
PositionResize = Literal["time_frequency", "released"]
ReadoutName = Literal["pooled", "layer", "weighted_sum", "attentive"]
Size = Annotated[int, Field(gt=0)]

PRESETS: dict[Preset, dict[str, int]] = {
    "tiny": {"hidden_size": 96, "num_hidden_layers": 4, "num_attention_heads": 3},
    "small": {"hidden_size": 384, "num_hidden_layers": 12, "num_attention_heads": 6},
    "base": {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12},
}


class AudioMosaicConfig(PreTrainedConfig):  # type: ignore[misc]
    """Shape of a ViT over [B, T, F] spectrogram windows; the defaults are the published ViT-B/16.

    Attributes:
        intermediate_size: width of the MLP; 4 x hidden_size when None.
        window_frames: T of the stored position table; other lengths are served by `position_resize`.
        drop_path_rate: of the last block, growing linearly from 0 at the first.
        patch_norm: LayerNorm on the embedded patches, before their positions are added.
        pre_norm: LayerNorm on patches with their positions, before the first block.
        fixed_positions: the position table is a constant that is stored but not trained.
        final_norm: LayerNorm after the last block, or none (a head then normalises the pooled vector).
        pooling: `mean` of all tokens with CLS (released), `mean_valid` without padded patches, or `cls`.
        position_resize: `time_frequency` crops or stretches time; `released` reproduces the published loader.
        objective: settings of the pretraining objective, where one is stored with the weights.
        readout: what a classifier reads: the `pooled` vector, one `layer`, a `weighted_sum` of all layers, or
            attention over them (`attentive`).
        readout_layer: 0-based block of `layer`.
        readout_heads: attention heads of `attentive`.
    """

    model_type = "audiomosaic"

    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int | None = None
    patch_size: int = 16
    window_frames: int = 1024
    num_mel_bins: int = 128
    drop_path_rate: float = 0.0
    layer_norm_eps: float = 1e-6
    patch_norm: bool = True
    pre_norm: bool = True
    fixed_positions: bool = False
    final_norm: str = "none"
    pooling: str = "mean"
    position_resize: str = "time_frequency"
    initializer_range: float = 0.02
    objective: dict[str, Any] | None = None
    readout: str = "pooled"
    readout_layer: int | None = None
    readout_heads: int = 1

    def __post_init__(self, **kwargs: Any) -> None:
        """Fill the derived width and refuse shapes that cannot be built."""
        if self.intermediate_size is None:
            self.intermediate_size = 4 * self.hidden_size
        heads = self.num_attention_heads
        if heads < 1 or self.hidden_size % heads or self.hidden_size % 4:
            raise AlmosaicError(
                f"expected a hidden_size that divides by num_attention_heads and by 4, "
                f"found {self.hidden_size} with {heads} heads: change one of the two"
            )
        for name, choices in (
            ("final_norm", FinalNorm),
            ("pooling", Pooling),
            ("position_resize", PositionResize),
            ("readout", ReadoutName),
        ):
            if (found := getattr(self, name)) not in get_args(choices):
                raise AlmosaicError(
                    f"expected {name} to be one of {', '.join(get_args(choices))}, found {found!r}: "
                    "correct the encoder's config"
                )
        self.check_readout()
        PatchGrid.of(self.window_frames, self.num_mel_bins, self.patch_size)
        super().__post_init__(**kwargs)

    def check_readout(self) -> None:
        """AlmosaicError where the read-out's fields do not fit the encoder."""
        depth, layer, heads = self.num_hidden_layers, self.readout_layer, self.readout_heads
        if self.readout == "layer" and (layer is None or not 0 <= layer < depth):
            raise AlmosaicError(
                f"expected readout_layer from 0 to {depth - 1} for readout: layer, found {layer}: "
                "name one block, counted from 0"
            )
        if self.readout != "layer" and layer is not None:
            raise AlmosaicError(
                f"expected no readout_layer for readout: {self.readout}, found {layer}: set readout: layer"
            )
        if heads < 1 or self.hidden_size % heads:
            raise AlmosaicError(
                f"expected readout_heads that divide hidden_size {self.hidden_size}, found {heads}: "
                "change one of the two"
            )

    @property
    def grid(self) -> PatchGrid:
        """Patch grid of a window of `window_frames` frames."""
        return PatchGrid.of(self.window_frames, self.num_mel_bins, self.patch_size)

    @classmethod
    def from_preset(cls, preset: str, **overrides: Any) -> "AudioMosaicConfig":
        """Width/depth/heads tiny 96/4/3, small 384/12/6, base 768/12/12; AlmosaicError on unknown names."""
        if preset not in PRESETS:
            raise AlmosaicError(
                f"expected an encoder preset ({', '.join(PRESETS)}), found {preset!r}: choose one"
            )
        known = set(cls.__dataclass_fields__)
        if unknown := sorted(set(overrides) - known - {"num_labels"}):
            raise AlmosaicError(
                f"expected fields of the encoder's config, found {', '.join(unknown)}: use "
                f"{', '.join(sorted(AudioMosaicConfig.__annotations__))}"
            )
        return cls(**{**PRESETS[preset], **overrides})

    def forward_flops(self, patches: int) -> int:
        """Multiply-adds x 2 of one forward pass over `patches` visible patches of one window."""
        tokens, width = patches + 1, self.hidden_size
        linear = 2 * tokens * (4 * width * width + 2 * width * int(self.intermediate_size or 0))
        attention = 4 * tokens * tokens * width
        return self.num_hidden_layers * (linear + attention) + 2 * patches * width * self.patch_size**2


class EncoderSettings(Settings):
    """The encoder of a recipe: a preset, and what differs from it (None = the preset's value).

    Blocks as MATPAC (Quelennec et al. 2025) has them: `patch_norm: false`, `pre_norm: false`,
    `fixed_positions: true` and `final_norm: layernorm`.
    """

    preset: Preset = "base"
    hidden_size: Size | None = None
    num_hidden_layers: Size | None = None
    num_attention_heads: Size | None = None
    intermediate_size: Size | None = None
    drop_path_rate: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    patch_norm: bool = True
    pre_norm: bool = True
    fixed_positions: bool = False
    final_norm: FinalNorm = "none"
    pooling: Pooling = "mean"
    position_resize: PositionResize = "time_frequency"

    def build(self, window_frames: int, num_mel_bins: int = 128, **overrides: Any) -> AudioMosaicConfig:
        """The config for windows of this size; `overrides` are further config fields such as `objective`."""
        chosen = {
            name: value for name, value in self.model_dump(exclude={"preset"}).items() if value is not None
        }
        sizes = {"window_frames": window_frames, "num_mel_bins": num_mel_bins}
        return AudioMosaicConfig.from_preset(self.preset, **{**chosen, **sizes, **overrides})
