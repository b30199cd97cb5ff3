"""The encoder as a classifier of sounds: pooled vector, LayerNorm, linear head."""

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from transformers.modeling_outputs import SequenceClassifierOutput

from almosaic.encoder.configuration import AudioMosaicConfig
from almosaic.encoder.modeling import AudioMosaicModel, AudioMosaicPreTrainedModel
from almosaic.errors import AlmosaicError


class AudioMosaicForAudioClassification(AudioMosaicPreTrainedModel):
    """Encoder, LayerNorm on the pooled vector, linear head; scores for C classes."""

    def __init__(self, config: AudioMosaicConfig):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.encoder = AudioMosaicModel(config)
        self.fc_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.head = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    def forward(
        self,
        input_features: Tensor,
        ids_keep: Tensor | None = None,
        input_features_mask: Tensor | None = None,
        labels: Tensor | None = None,
        output_hidden_states: bool = False,
    ) -> SequenceClassifierOutput:
        """Score windows [B, T, F]; logits [B, C].

        Args:
            input_features: [B, T, F] normalised log-mel windows.
            ids_keep: [B, K] patches to keep, when token masking is used in training.
            input_features_mask: [B, T] bool, used by `mean_valid` pooling.
            labels: [B] int64 classes (cross-entropy) or [B, C] targets in [0, 1] (binary cross-entropy).
            output_hidden_states: also return the encoder's hidden states.

        Raises:
            AlmosaicError: labels that fit neither form, or not the config's `problem_type`.
        """
        encoded = self.encoder(input_features, ids_keep, input_features_mask, output_hidden_states)
        logits = self.head(self.fc_norm(encoded.pooler_output))
        return SequenceClassifierOutput(
            loss=None if labels is None else self._loss(logits, labels),
            logits=logits,
            hidden_states=encoded.hidden_states,
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
