"""The audio-language model: `audio_tower` + `multi_modal_projector` + `language_model`.

Audio tokens take the place of `<|audio|>` placeholders among the word embeddings; text, cache and sampling
are the library's own.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling, CausalLMOutputWithPast

from almosaic.alm.adapter_folder import is_adapter_folder
from almosaic.alm.adapters import inject_lora
from almosaic.alm.configuration import AlmosaicConfig
from almosaic.alm.layout import AudioLayout
from almosaic.alm.processing import AUDIO_TOKEN, add_audio_token
from almosaic.alm.projectors import ProjectorSettings, build_projector, projector_settings
from almosaic.alm.quantization import check_writable, keep_layout, quantization_of
from almosaic.alm.sources import describe_source, portable_source
from almosaic.alm.templates import choose_template, end_token_id
from almosaic.alm.vocabulary import grow_vocabulary, word_scale, word_width
from almosaic.encoder.modeling import AudioMosaicModel
from almosaic.errors import AlmosaicError

_PRECISE = ["audio_tower", "multi_modal_projector", "lora_A.default", "lora_B.default"]
_AUDIO_INPUTS = ("input_features", "input_features_mask", "audio_features", "audio_windows", "audio_clips")


class AlmosaicForConditionalGeneration(PreTrainedModel, GenerationMixin):  # type: ignore[misc]
    """A causal language model that hears: `forward` and `generate` take clips beside the text."""

    config_class = AlmosaicConfig
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = True
    input_modalities = ("audio", "text")
    _supports_sdpa = True
    _supports_attention_backend = True
    _skip_keys_device_placement = ["past_key_values"]  # noqa: RUF012 (the library's own convention)
    # Small, and the part that is trained: it stays precise beside a language model in fewer bits.
    _keep_in_fp32_modules_strict = _PRECISE
    _keep_in_fp32_modules = _PRECISE

    def __init__(
        self,
        config: AlmosaicConfig,
        audio_tower: AudioMosaicModel | None = None,
        language_model: Any = None,
    ) -> None:
        super().__init__(config)
        for part in (audio_tower, language_model):
            _keep_weights(part)
        self.audio_tower = audio_tower or AudioMosaicModel(config.audio_config)
        settings = projector_settings(config.projector)
        widths = config.audio_config.hidden_size, word_width(config.text_config)
        self.multi_modal_projector = build_projector(settings, *widths, config.audio_config.grid.time)
        self.language_model = language_model or AutoModelForCausalLM.from_config(config.text_config)
        if config.lora is not None:
            inject_lora(self.language_model, config.lora)
        depth = config.audio_config.num_hidden_layers
        if config.layer is not None and not 0 <= config.layer < depth:
            raise AlmosaicError(
                f"layer {config.layer} does not exist; the encoder has blocks 0 to {depth - 1}"
            )
        self.post_init()

    @classmethod
    def from_parts(
        cls,
        audio_tower: AudioMosaicModel,
        language_model: Any,
        projector: ProjectorSettings,
        tokenizer: Any,
        *,
        layer: int | None = None,
        chat_template: str | None = None,
    ) -> "AlmosaicForConditionalGeneration":
        """Join an encoder and a causal language model with a fresh projector.

        The tokenizer gains `<|audio|>`; the word tables grow, by one row that is the mean of the others, only
        when they have no row left for it. The projector starts at the scale of words.
        """
        audio_token_id = add_audio_token(tokenizer)
        source = describe_source(language_model)
        grow_vocabulary(language_model, audio_token_id + 1)
        config = AlmosaicConfig(
            audio_config=audio_tower.config,
            text_config=language_model.config,
            projector=projector.model_dump(),
            audio_token_id=audio_token_id,
            pad_token_id=tokenizer.pad_token_id,
            layer=layer,
            language_model_quantization=quantization_of(language_model),
            language_model_source=source,
        )
        model = cls(config, audio_tower, language_model)
        model.multi_modal_projector.set_output_scale(word_scale(language_model))
        end = end_token_id(chat_template or choose_template(tokenizer), tokenizer)
        model.generation_config = _generation_config(language_model, tokenizer, audio_token_id, end)
        return model

    @property
    def dtype(self) -> torch.dtype:
        """Type of the language model's weights, in which a folder is written and read."""
        dtype: torch.dtype = self.language_model.dtype
        return dtype

    def get_input_embeddings(self) -> nn.Module:
        """The language model's word embeddings."""
        embeddings: nn.Module = self.language_model.get_input_embeddings()
        return embeddings

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the language model's word embeddings."""
        self.language_model.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        """The language model's output layer."""
        head: nn.Module = self.language_model.get_output_embeddings()
        return head

    def set_output_embeddings(self, value: nn.Module) -> None:
        """Replace the language model's output layer."""
        self.language_model.set_output_embeddings(value)

    def train(self, mode: bool = True) -> "AlmosaicForConditionalGeneration":
        """Training mode, except for a frozen encoder: its drop path would make its tokens random."""
        super().train(mode)
        if not any(parameter.requires_grad for parameter in self.audio_tower.parameters()):
            self.audio_tower.eval()
        return self

    def get_audio_features(
        self, input_features: Tensor, input_features_mask: Tensor | None = None, **kwargs: Any
    ) -> BaseModelOutputWithPooling:
        """`last_hidden_state`: patch tokens [sum W, Tp, Fp, D]; `pooler_output`: audio tokens [sum W, Q, H].

        `input_features` is [sum W, T, F], its mask [sum W, T].
        """
        tokens = self._patch_tokens(input_features, input_features_mask)
        return BaseModelOutputWithPooling(last_hidden_state=tokens, pooler_output=self._project(tokens))

    def _patch_tokens(self, input_features: Tensor, input_features_mask: Tensor | None) -> Tensor:
        layer = self.config.layer
        output = self.audio_tower(
            input_features.to(self.audio_tower.dtype),
            input_features_mask=input_features_mask,
            output_hidden_states=layer is not None,
        )
        # hidden_states[0] is what enters block 0.
        hidden = output.last_hidden_state if layer is None else output.hidden_states[layer + 1]
        patch_size = self.config.audio_config.patch_size
        grid = (input_features.shape[1] // patch_size, input_features.shape[2] // patch_size)
        patch_tokens: Tensor = hidden[:, 1:].unflatten(1, grid)
        return patch_tokens

    def _project(self, tokens: Tensor) -> Tensor:
        dtype = next(self.multi_modal_projector.parameters()).dtype
        audio_tokens: Tensor = self.multi_modal_projector(tokens.to(dtype))
        return audio_tokens

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        input_features: Tensor | None = None,
        input_features_mask: Tensor | None = None,
        audio_features: Tensor | None = None,
        audio_windows: Tensor | None = None,
        audio_clips: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Next-word logits, and the loss when labels are given.

        Args:
            input_ids: [B, L], with `Q` placeholders per window.
            attention_mask: [B, L], 1 on real tokens.
            input_features: [sum W, T, F], the windows of all clips in order.
            input_features_mask: [sum W, T], True on real frames.
            audio_features: [sum W, Tp, Fp, D], cached patch tokens in place of `input_features`.
            audio_windows: [A], windows of each clip; None = one each.
            audio_clips: [B], clips of each row, 0 allowed; None = one each.
            position_ids: [B, L]; None = counted from the attention mask.
            past_key_values: the language model's cache.
            inputs_embeds: [B, L, H] in place of `input_ids`, audio already inside.
            labels: [B, L], -100 = not trained.
            **kwargs: passed on to the language model (`logits_to_keep`, `num_items_in_batch`, ...).

        Raises:
            AlmosaicError: placeholders and windows differ in some row.
        """
        if inputs_embeds is None:
            if input_ids is None:
                raise AlmosaicError("forward needs input_ids or inputs_embeds; both are None")
            started = past_key_values is not None and past_key_values.get_seq_length() > 0
            tokens = audio_features
            if tokens is None and input_features is not None:
                tokens = self._patch_tokens(input_features, input_features_mask)
            rows = len(input_ids)
            layout = None if tokens is None else AudioLayout.of(tokens, audio_windows, audio_clips, rows)
            inputs_embeds = self._embed(input_ids, tokens, layout, started)
        if position_ids is None and past_key_values is None and attention_mask is not None:
            position_ids = _counted_positions(attention_mask)
        if self.training and past_key_values is None:
            kwargs.setdefault("use_cache", False)
        output: CausalLMOutputWithPast = self.language_model(
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            labels=labels,
            **kwargs,
        )
        return output

    def _embed(
        self, input_ids: Tensor, tokens: Tensor | None, layout: AudioLayout | None, started: bool
    ) -> Tensor:
        """Word embeddings [B, L, H] with audio tokens in the place of placeholders."""
        placeholders = input_ids == self.config.audio_token_id
        embeds: Tensor = self.get_input_embeddings()(
            input_ids.masked_fill(placeholders, self.config.pad_token_id)
        )
        if tokens is not None and layout is not None:
            layout.check(placeholders, self.config.queries)
            audio_tokens = self._project(tokens).to(embeds.dtype)
            return embeds.masked_scatter(placeholders[..., None], audio_tokens)
        if not started and bool(placeholders.any()):
            raise AlmosaicError(
                f"the text has {int(placeholders.sum())} {AUDIO_TOKEN} placeholders but no audio came with "
                "it; pass input_features or audio_features"
            )
        return embeds + self._silent_pass() if self.training else embeds

    def _silent_pass(self) -> Tensor | float:
        """Zero, through every trainable audio weight: without clips these would get no gradient."""
        config, device = self.config.audio_config, self.device
        if any(parameter.requires_grad for parameter in self.audio_tower.parameters()):
            features = torch.zeros(1, config.window_frames, config.num_mel_bins, device=device)
            return 0.0 * self._project(self._patch_tokens(features, None)).sum()
        if any(parameter.requires_grad for parameter in self.multi_modal_projector.parameters()):
            tokens = torch.zeros(1, config.grid.time, config.grid.freq, config.hidden_size, device=device)
            return 0.0 * self._project(tokens).sum()
        return 0.0

    def prepare_inputs_for_generation(
        self, input_ids: Tensor, is_first_iteration: bool = False, **kwargs: Any
    ) -> dict[str, Any]:
        """The library's own inputs; after the prompt, with a cache, audio is in the cache and is dropped."""
        inputs: dict[str, Any] = super().prepare_inputs_for_generation(
            input_ids, is_first_iteration=is_first_iteration, **kwargs
        )
        if not is_first_iteration and kwargs.get("use_cache", True):
            for name in _AUDIO_INPUTS:
                inputs.pop(name, None)
        return inputs

    def _expand_inputs_for_generation(
        self,
        expand_size: int = 1,
        is_encoder_decoder: bool = False,
        input_ids: Tensor | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor | None, dict[str, Any]]:
        """Repeat rows for beams and several answers; a row's windows are repeated together.

        The library repeats tensors entry by entry, which would interleave the windows of a row.
        """
        audio = {name: kwargs.pop(name) for name in _AUDIO_INPUTS if kwargs.get(name) is not None}
        rows = len(input_ids) if input_ids is not None else 0
        input_ids, kwargs = super()._expand_inputs_for_generation(
            expand_size=expand_size, is_encoder_decoder=is_encoder_decoder, input_ids=input_ids, **kwargs
        )
        windows = audio.get("audio_features", audio.get("input_features"))
        if windows is not None and expand_size > 1:
            layout = AudioLayout.of(windows, audio.get("audio_windows"), audio.get("audio_clips"), rows)
            audio = layout.expand(audio, expand_size)
        return input_ids, {**kwargs, **audio}

    @classmethod
    def from_pretrained(cls, name: str | Path, *args: Any, **kwargs: Any) -> Any:
        """Load a full folder or hub repository; AlmosaicError for one without the frozen weights."""
        loaded = None if is_adapter_folder(Path(name)) else super().from_pretrained(name, *args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        if model is None or model.config.language_model_source is not None:
            raise AlmosaicError(
                f"{name} leaves out the frozen language model weights; load it with almosaic.load_model, "
                "or write a full folder with almosaic export"
            )
        keep_layout(model)
        return loaded

    def save_pretrained(self, save_directory: str | Path, **kwargs: Any) -> None:
        """Write a folder; after `apply_tuning`, frozen language model weights are named, not written.

        Raises:
            AlmosaicError: quantised weights would be written that nothing tells how to read.
        """
        source = self.config.language_model_source
        partial = bool(self._keys_to_ignore_on_save)
        if not partial and getattr(self, "hf_quantizer", None) is None:
            check_writable(self.language_model)
        self.config.language_model_source = portable_source(source, Path(save_directory)) if partial else None
        try:
            super().save_pretrained(save_directory, **kwargs)
        finally:
            self.config.language_model_source = source


def _counted_positions(attention_mask: Tensor) -> Tensor | None:
    """Positions [B, L] that start at the first real token; None for masks of another form."""
    return (attention_mask.long().cumsum(-1) - 1).clamp(min=0) if attention_mask.ndim == 2 else None


def _keep_weights(part: nn.Module | None) -> None:
    """Tell the library that a part brings its weights, so that it does not initialise them afresh."""
    for module in part.modules() if part is not None else ():
        module._is_hf_initialized = True  # type: ignore[assignment]


def _generation_config(language_model: Any, tokenizer: Any, audio_token_id: int, end: int) -> Any:
    """The language model's settings, stopping where the chat template ends, never writing `<|audio|>`."""
    settings = type(language_model.generation_config)(**language_model.generation_config.to_diff_dict())
    ends = settings.eos_token_id if settings.eos_token_id is not None else tokenizer.eos_token_id
    known = ends if isinstance(ends, list) else [ends] if ends is not None else []
    settings.eos_token_id = sorted({*known, end})
    settings.pad_token_id = tokenizer.pad_token_id
    settings.suppress_tokens = sorted({*(settings.suppress_tokens or []), audio_token_id})
    return settings
