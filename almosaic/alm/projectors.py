"""Projectors: patch tokens of a window in, `Q` embeddings of the language model's width out."""

import math
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, TypeAdapter
from torch import Tensor, nn
from torch.nn import functional
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


ProjectorSettings = Annotated[MLPProjectorSettings | QFormerProjectorSettings, Field(discriminator="name")]


class Projector(nn.Module):
    """What all projectors share: the last LayerNorm, whose gain puts audio tokens on the scale of words."""

    def __init__(self, queries: int, llm_width: int) -> None:
        super().__init__()
        self.queries = queries
        self.output_norm = nn.LayerNorm(llm_width)

    @torch.no_grad()
    def set_output_scale(self, scale: float) -> None:
        """Set the standard deviation of the audio tokens, normally that of the word embeddings."""
        self.output_norm.weight.fill_(scale)

    def check_time_patches(self, time_patches: int) -> None:
        """Refuse a window with fewer time patches than this projector needs, as AlmosaicError."""


class MLPProjector(Projector):
    """Pool to `Q` time steps, LayerNorm, Linear, GELU, Linear, LayerNorm."""

    def __init__(self, settings: MLPProjectorSettings, encoder_width: int, llm_width: int) -> None:
        super().__init__(settings.queries, llm_width)
        hidden = settings.hidden_size or llm_width
        self.input_norm = nn.LayerNorm(encoder_width)
        self.linear_1 = nn.Linear(encoder_width, hidden)
        self.linear_2 = nn.Linear(hidden, llm_width)

    def check_time_patches(self, time_patches: int) -> None:
        """Refuse a window with fewer time patches than `queries`, as AlmosaicError."""
        if self.queries > time_patches:
            raise AlmosaicError(
                f"the mlp projector pools time to {self.queries} tokens but a window has {time_patches} time "
                f"patches; set projector.queries to at most {time_patches}, or use name: qformer"
            )

    def forward(self, tokens: Tensor) -> Tensor:
        """Patch tokens [sum W, Tp, Fp, D] to audio tokens [sum W, Q, H]; AlmosaicError when Q > Tp."""
        self.check_time_patches(tokens.shape[1])
        time_steps = tokens.mean(dim=2).transpose(1, 2)
        pooled = functional.adaptive_avg_pool1d(time_steps, self.queries).transpose(1, 2)
        hidden = functional.gelu(self.linear_1(self.input_norm(pooled)))
        projected: Tensor = self.output_norm(self.linear_2(hidden))
        return projected


class QFormerProjector(Projector):
    """Learned queries over the tokens of one window, through the library's own Q-Former."""

    def __init__(self, settings: QFormerProjectorSettings, encoder_width: int, llm_width: int) -> None:
        super().__init__(settings.queries, llm_width)
        if settings.hidden_size % settings.heads:
            raise AlmosaicError(
                f"projector.hidden_size {settings.hidden_size} does not divide into {settings.heads} heads; "
                "choose a multiple of projector.heads"
            )
        self.input_norm = nn.LayerNorm(encoder_width)
        self.query_tokens = nn.Parameter(torch.empty(settings.queries, settings.hidden_size))
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
        heard = self.input_norm(tokens.flatten(1, 2))
        queries = self.query_tokens.expand(len(tokens), -1, -1)
        hidden = self.qformer(query_embeds=queries, encoder_hidden_states=heard).last_hidden_state
        projected: Tensor = self.output_norm(self.output(hidden))
        return projected


def build_projector(
    settings: MLPProjectorSettings | QFormerProjectorSettings, encoder_width: int, llm_width: int
) -> Projector:
    """The projector that `settings` describes, from encoder width `D` to language model width `H`."""
    if isinstance(settings, MLPProjectorSettings):
        return MLPProjector(settings, encoder_width, llm_width)
    return QFormerProjector(settings, encoder_width, llm_width)


def projector_settings(fields: dict[str, Any]) -> MLPProjectorSettings | QFormerProjectorSettings:
    """The settings object of a saved dictionary; pydantic.ValidationError when a key does not fit."""
    adapter: TypeAdapter[MLPProjectorSettings | QFormerProjectorSettings] = TypeAdapter(ProjectorSettings)
    return adapter.validate_python(fields)
