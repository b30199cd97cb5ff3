"""Configuration of the audio-language model: its parts, the audio token, the source of frozen weights."""

from typing import Any, ClassVar

from transformers import AutoConfig, PreTrainedConfig

from almosaic.encoder.configuration import AudioMosaicConfig
from almosaic.errors import AlmosaicError


class AlmosaicConfig(PreTrainedConfig):  # type: ignore[misc]
    """Configuration of `AlmosaicForConditionalGeneration`, saved with its weights.

    Args:
        audio_config: the encoder's configuration (or its dictionary).
        text_config: the language model's configuration (or its dictionary), of any causal language model.
        projector: settings of the projector, as `ProjectorSettings.model_dump()` writes them.
        audio_token_id: id of `<|audio|>`; `queries` of them stand for each window of a clip.
        pad_token_id: id that replaces `audio_token_id` before the embedding lookup.
        layer: 0-based encoder block whose tokens the projector reads; None = the encoder's output.
        lora: rank, alpha, dropout and targets of the adapters inside `language_model`; None = no adapters.
        language_model_quantization: `nf4`, `fp4` or `int8` when the other parts were trained on a language
            model quantised so, which loading repeats; None = in full precision.
        language_model_source: path and sha256 of the frozen weights that a partial folder leaves out.
    """

    model_type = "almosaic"
    sub_configs: ClassVar[dict[str, Any]] = {"audio_config": AudioMosaicConfig, "text_config": AutoConfig}

    audio_config: Any = None
    text_config: Any = None
    projector: Any = None
    audio_token_id: int = 0
    pad_token_id: int = 0
    layer: int | None = None
    lora: dict[str, Any] | None = None
    language_model_quantization: str | None = None
    language_model_source: dict[str, str] | None = None
    initializer_range: float = 0.02
    # The language model's own configuration says whether its tables are tied.
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        """Turn dictionaries into configurations and fill in defaults."""
        if self.audio_config is None or isinstance(self.audio_config, dict):
            self.audio_config = AudioMosaicConfig(**(self.audio_config or {}))
        if self.text_config is None or isinstance(self.text_config, dict):
            fields = dict(self.text_config or {"model_type": "llama"})
            if "model_type" not in fields:
                raise AlmosaicError("text_config needs a model_type; add the language model's, e.g. llama")
            self.text_config = AutoConfig.for_model(**fields)
        if self.projector is None:
            self.projector = {"name": "mlp", "queries": 32}
        # The library would reset the parts' attention kernels to undecided; a loaded part has decided.
        kernels = [(part, part._attn_implementation) for part in (self.audio_config, self.text_config)]
        super().__post_init__(**kwargs)
        for part, kernel in kernels:
            part._attn_implementation = part._attn_implementation or kernel

    @property
    def queries(self) -> int:
        """Audio tokens per window, `Q`."""
        return int(self.projector["queries"])
