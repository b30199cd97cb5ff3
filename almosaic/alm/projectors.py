"""Projectors: patch tokens of a window in, `Q` embeddings of the language model's width out."""

import math
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, TypeAdapter
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint
from transformers import Blip2QFormerConfig, Blip2QFormerModel

from almosaic.errors import AlmosaicError
from almosaic.settings import Settings


class MLPProjectorSettings(Settings):
    """`mlp`: time pooled to `queries`, then two linear layers; hidden_size None = the LLM's width."""

    name: Literal["mlp"] = "mlp"
    queries: int = Field(32, ge=1)
    hidden_size: int | None = Field(None, ge=1)


class QFormerProjectorSettings(Settings):
    """`qformer`: learned queries that attend to all patch tokens of a window (BLIP-2, section 3.1)."""

    name: Literal["qformer"] = "qformer"
    queries: int = Field(32, ge=1)
    hidden_size: int = Field(256, ge=1)
    layers: int = Field(2, ge=1)
    heads: int = Field(4, ge=1)


class SegmentQFormerProjectorSettings(Settings):
    """`segment_qformer`: a Q-Former over segments of `segment_columns` time patches (SALMONN, section 3.1).

    `queries` counts the tokens of a whole window, as in all projectors; its segments share them out evenly.
    """

    name: Literal["segment_qformer"] = "segment_qformer"
    queries: int = Field(32, ge=1)
    segment_columns: int = Field(4, ge=1)
    hidden_size: int = Field(256, ge=1)
    layers: int = Field(2, ge=1)
    heads: int = Field(4, ge=1)


class PoolProjectorSettings(Settings):
    """`pool`: time pooled to `queries`, one linear layer (LTU, section 3).

    `layout` is what the token axis is taken for: `true` reads it as it is, time-major; `released` repeats the
    published code, which averages over 8 blocks of time and 2 neighbouring bands instead of over frequency.
    """

    name: Literal["pool"] = "pool"
    queries: int = Field(32, ge=1)
    layout: Literal["true", "released"] = "true"


ProjectorSettings = Annotated[
    MLPProjectorSettings | QFormerProjectorSettings | SegmentQFormerProjectorSettings | PoolProjectorSettings,
    Field(discriminator="name"),
]


class Projector(nn.Module):
    """What all projectors share: their number of tokens and how loud those are."""

    def __init__(self, queries: int) -> None:
        super().__init__()
        self.queries = queries

    def set_output_scale(self, scale: float) -> None:
        """Set the standard deviation of the audio tokens, normally that of the word embeddings."""
        raise NotImplementedError

    def check_time_patches(self, time_patches: int) -> None:
        """Refuse a window with fewer time patches than this projector needs, as AlmosaicError."""


class NormedProjector(Projector):
    """Ends in a LayerNorm, whose gain puts audio tokens on the scale of words."""

    def __init__(self, queries: int, llm_width: int) -> None:
        super().__init__(queries)
        self.output_norm = nn.LayerNorm(llm_width)

    @torch.no_grad()
    def set_output_scale(self, scale: float) -> None:
        """Set the standard deviation of the audio tokens, normally that of the word embeddings."""
        self.output_norm.weight.fill_(scale)


class PooledProjector(Projector):
    """Pools time to `Q` steps; as a whole it is what gradient checkpointing computes again."""

    name: str
    gradient_checkpointing = False  # set by the library, as in its own layers

    def check_time_patches(self, time_patches: int) -> None:
        """Refuse a window with fewer time patches than `queries`, as AlmosaicError."""
        if self.queries > time_patches:
            raise AlmosaicError(
                f"the {self.name} projector pools time to {self.queries} tokens but a window has "
                f"{time_patches} time patches; set projector.queries to at most {time_patches}, or use name: "
                "qformer"
            )

    def project(self, tokens: Tensor) -> Tensor:
        """What `forward` does, without checks."""
        raise NotImplementedError

    def forward(self, tokens: Tensor) -> Tensor:
        """Patch tokens [sum W, Tp, Fp, D] to audio tokens [sum W, Q, H]; AlmosaicError when Q > Tp."""
        self.check_time_patches(tokens.shape[1])
        if self.gradient_checkpointing and self.training:
            # Re-entrant, whatever was asked for, would give no gradients where the tokens of a frozen encoder
            # are all that goes in.
            recomputed: Tensor = checkpoint(self.project, tokens, use_reentrant=False)
            return recomputed
        return self.project(tokens)


class PoolProjector(PooledProjector):
    """Mean over frequency, time pooled to `Q` steps, / 50, LayerNorm without gain and bias, Linear."""

    name = "pool"

    def __init__(self, settings: PoolProjectorSettings, encoder_width: int, llm_width: int) -> None:
        super().__init__(settings.queries)
        self.layout = settings.layout
        self.input_norm = nn.LayerNorm(encoder_width, elementwise_affine=False)
        self.linear = nn.Linear(encoder_width, llm_width)

    @torch.no_grad()
    def set_output_scale(self, scale: float) -> None:
        """Redraw the linear layer so that its outputs, whose inputs have deviation 1, have this one."""
        self.linear.weight.normal_(std=scale / math.sqrt(self.linear.in_features))
        self.linear.bias.zero_()

    def pool(self, tokens: Tensor) -> Tensor:
        """Patch tokens [sum W, Tp, Fp, D] to pooled ones [sum W, Q, D]."""
        windows, time, bands, width = tokens.shape
        if self.layout == "released":
            time_steps = tokens.reshape(windows, bands, time, width).mean(dim=1)
        else:
            time_steps = tokens.mean(dim=2)
        return functional.adaptive_avg_pool1d(time_steps.transpose(1, 2), self.queries).transpose(1, 2) / 50.0

    def project(self, tokens: Tensor) -> Tensor:
        """Patch tokens [sum W, Tp, Fp, D] to audio tokens [sum W, Q, H]."""
        projected: Tensor = self.linear(self.input_norm(self.pool(tokens)))
        return projected


class MLPProjector(PooledProjector, NormedProjector):
    """Pool to `Q` time steps, LayerNorm, Linear, GELU, Linear, LayerNorm."""

    name = "mlp"

    def __init__(self, settings: MLPProjectorSettings, encoder_width: int, llm_width: int) -> None:
        super().__init__(settings.queries, llm_width)
        hidden = settings.hidden_size or llm_width
        self.input_norm = nn.LayerNorm(encoder_width)
        self.linear_1 = nn.Linear(encoder_width, hidden)
        self.linear_2 = nn.Linear(hidden, llm_width)

    def project(self, tokens: Tensor) -> Tensor:
        """Patch tokens [sum W, Tp, Fp, D] to audio tokens [sum W, Q, H]."""
        time_steps = tokens.mean(dim=2).transpose(1, 2)
        pooled = functional.adaptive_avg_pool1d(time_steps, self.queries).transpose(1, 2)
        hidden = functional.gelu(self.linear_1(self.input_norm(pooled)))
        projected: Tensor = self.output_norm(self.linear_2(hidden))
        return projected


class QFormerProjector(NormedProjector):
    """Learned queries over the tokens of one window, through the library's own Q-Former."""

    def __init__(
        self,
        settings: QFormerProjectorSettings | SegmentQFormerProjectorSettings,
        learned: int,
        encoder_width: int,
        llm_width: int,
    ) -> None:
        super().__init__(settings.queries, llm_width)
        if settings.hidden_size % settings.heads:
            raise AlmosaicError(
                f"projector.hidden_size {settings.hidden_size} does not divide into {settings.heads} heads; "
                "choose a multiple of projector.heads"
            )
        self.input_norm = nn.LayerNorm(encoder_width)
        self.query_tokens = nn.Parameter(torch.empty(learned, settings.hidden_size))
        self.qformer = Blip2QFormerModel(
            Blip2QFormerConfig(
                hidden_size=settings.hidden_size,
                num_hidden_layers=settings.layers,
                num_attention_heads=settings.heads,
                intermediate_size=4 * settings.hidden_size,
                encoder_hidden_size=encoder_width,
                # Every block listens: with two blocks the default of every second one would leave one deaf.
                cross_attention_frequency=1,
                hidden_dropout_prob=0.0,
                attention_probs_dropout_prob=0.0,
                use_qformer_text_input=False,
            )
        )
        self.output = nn.Linear(settings.hidden_size, llm_width)
        nn.init.normal_(self.query_tokens, std=1 / math.sqrt(settings.hidden_size))

    def forward(self, tokens: Tensor) -> Tensor:
        """Patch tokens [sum W, Tp, Fp, D] to audio tokens [sum W, Q, H]."""
        return self.listen(tokens)

    def listen(self, tokens: Tensor) -> Tensor:
        """Stretches of patch tokens [n, T', Fp, D] to their tokens [n, learned queries, H]."""
        heard = self.input_norm(tokens.flatten(1, 2))
        queries = self.query_tokens.expand(len(tokens), -1, -1)
        hidden = self.qformer(query_embeds=queries, encoder_hidden_states=heard).last_hidden_state
        projected: Tensor = self.output_norm(self.output(hidden))
        return projected


class SegmentQFormerProjector(QFormerProjector):
    """The same learned queries for every segment of a window; its tokens come in the order of time."""

    def __init__(
        self,
        settings: SegmentQFormerProjectorSettings,
        encoder_width: int,
        llm_width: int,
        time_patches: int,
    ) -> None:
        learned = _queries_per_segment(settings.queries, settings.segment_columns, time_patches)
        super().__init__(settings, learned, encoder_width, llm_width)
        self.segment_columns = settings.segment_columns
        self.time_patches = time_patches

    def check_time_patches(self, time_patches: int) -> None:
        """Refuse windows of another length than the projector was built for, as AlmosaicError."""
        if time_patches != self.time_patches:
            raise AlmosaicError(
                f"the segment_qformer projector is for windows of {self.time_patches} time patches but "
                f"a window has {time_patches}; give it windows of the length in audio_config.window_frames"
            )

    def forward(self, tokens: Tensor) -> Tensor:
        """Patch tokens [sum W, Tp, Fp, D] to audio tokens [sum W, Q, H]; AlmosaicError for another Tp."""
        self.check_time_patches(tokens.shape[1])
        windows, _, bands, width = tokens.shape
        segments = tokens.reshape(-1, self.segment_columns, bands, width)
        return self.listen(segments).reshape(windows, self.queries, -1)


def _queries_per_segment(queries: int, segment_columns: int, time_patches: int) -> int:
    """Learned queries of each segment, `queries * segment_columns / time_patches`, which must be whole."""
    segments, rest = divmod(time_patches, segment_columns)
    if rest:
        raise AlmosaicError(
            f"a window has {time_patches} time patches, which do not divide into segments of "
            f"{segment_columns}; set projector.segment_columns to a divisor of {time_patches}"
        )
    if queries % segments:
        raise AlmosaicError(
            f"projector.queries {queries} do not divide among the {segments} segments of a window "
            f"({time_patches} time patches / {segment_columns}); choose a multiple of {segments}"
        )
    return queries // segments


def build_projector(
    settings: ProjectorSettings, encoder_width: int, llm_width: int, time_patches: int
) -> Projector:
    """The projector that `settings` describes, from encoder width `D` to language model width `H`.

    Raises:
        AlmosaicError: `settings` do not fit a window of `time_patches` columns.
    """
    projector: Projector
    if isinstance(settings, MLPProjectorSettings):
        projector = MLPProjector(settings, encoder_width, llm_width)
    elif isinstance(settings, PoolProjectorSettings):
        projector = PoolProjector(settings, encoder_width, llm_width)
    elif isinstance(settings, SegmentQFormerProjectorSettings):
        projector = SegmentQFormerProjector(settings, encoder_width, llm_width, time_patches)
    else:
        projector = QFormerProjector(settings, settings.queries, encoder_width, llm_width)
    projector.check_time_patches(time_patches)
    return projector


def projector_settings(fields: dict[str, Any]) -> ProjectorSettings:
    """The settings object of a saved dictionary; pydantic.ValidationError when a key does not fit."""
    adapter: TypeAdapter[ProjectorSettings] = TypeAdapter(ProjectorSettings)
    return adapter.validate_python(fields)
