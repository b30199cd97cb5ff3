"""The encoder as a classifier of sounds: read-out, LayerNorm, linear head."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.modeling_outputs import SequenceClassifierOutput

from almosaic.encoder.configuration import AudioMosaicConfig
from almosaic.encoder.modeling import AudioMosaicModel, AudioMosaicPreTrainedModel
from almosaic.encoder.readouts import Readout, build_readout
from almosaic.errors import AlmosaicError


class AudioMosaicForAudioClassification(AudioMosaicPreTrainedModel):
    """Encoder, the config's read-out, LayerNorm, linear head; scores for C classes."""

    def __init__(self, config: AudioMosaicConfig):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.encoder = AudioMosaicModel(config)
        self.readout = build_readout(config)
        self.fc_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.head = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """A read-out knows its own start; the rest as in every model of ours."""
        if isinstance(module, Readout):
            module.init_weights()
        else:
            super()._init_weights(module)

    def forward(
        self,
        input_features: Tensor,
        ids_keep: Tensor | None = None,
        input_features_mask: Tensor | None = None,
        labels: Tensor | None = None,
        output_hidden_states: bool = False,
        audio_windows: Tensor | None = None,
        path_noise: Tensor | None = None,
    ) -> SequenceClassifierOutput:
        """Score windows [B, T, F], logits [B, C], or clips of several windows, logits [A, C].

        Args:
            input_features: [B, T, F] normalised log-mel windows.
            ids_keep: [B, K] patches to keep, when token masking is used in training.
            input_features_mask: [B, T] bool, used by `mean_valid` pooling.
            labels: [B] int64 classes (cross-entropy) or [B, C] targets in [0, 1] (binary cross-entropy); [A]
                or [A, C] with `audio_windows`.
            output_hidden_states: also return the encoder's hidden states.
            audio_windows: [A] windows of each clip, in order, as the feature extractor returns them: the
                logits of a clip are the mean over its windows, weighted by their real frames where
                `input_features_mask` tells them.

            path_noise: [B, depth, 2] uniforms for the encoder's drop path in training.

        Raises:
            AlmosaicError: labels that fit neither form, or not the config's `problem_type`; windows that do
                not add up.
        """
        needed = output_hidden_states or self.readout.reads_layers
        encoded = self.encoder(input_features, ids_keep, input_features_mask, needed, path_noise)
        vectors = self.readout(encoded, lambda x: self.encoder.pool(x, ids_keep, input_features_mask))
        logits = self.head(self.fc_norm(vectors))
        if audio_windows is not None:
            logits = _mean_of_clips(logits, audio_windows, input_features_mask)
        return SequenceClassifierOutput(
            loss=None if labels is None else self._loss(logits, labels),
            logits=logits,
            hidden_states=encoded.hidden_states if output_hidden_states else None,
        )

    def _loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy for [B] class indices, binary cross-entropy for [B, C] targets."""
        single, multi = "single_label_classification", "multi_label_classification"
        found = single if labels.ndim == 1 else multi
        problem: Any = self.config.problem_type or found
        fits = labels.shape == (logits.shape if found == multi else logits.shape[:1])
        if problem != found or not fits:
            wanted = list(logits.shape) if problem == multi else [logits.shape[0]]
            raise AlmosaicError(
                f"expected labels {wanted} for {problem} with {logits.shape[1]} classes, "
                f"found {list(labels.shape)}: check the labels or the config's problem_type"
            )
        if problem == multi:
            return F.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype))
        return F.cross_entropy(logits, labels)


def _mean_of_clips(logits: Tensor, audio_windows: Tensor, frame_mask: Tensor | None) -> Tensor:
    """Logits of windows [B, C] to those of clips [A, C]."""
    windows = audio_windows.to(logits.device)
    if int(windows.sum()) != logits.shape[0] or int(windows.min()) < 1:
        raise AlmosaicError(
            f"expected audio_windows that add up to {logits.shape[0]} windows, found {windows.tolist()}: "
            "pass what the feature extractor returned (in a pipeline of the library: batch_size=1)"
        )
    clip = torch.repeat_interleave(torch.arange(len(windows), device=logits.device), windows)
    weights = torch.ones_like(logits[:, 0]) if frame_mask is None else frame_mask.sum(1).to(logits.dtype)
    totals = weights.new_zeros(len(windows)).index_add(0, clip, weights)
    shares = (weights / totals[clip])[:, None]
    return logits.new_zeros(len(windows), logits.shape[1]).index_add(0, clip, logits * shares)
