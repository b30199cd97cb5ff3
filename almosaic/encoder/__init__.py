"""The audio encoder: its configuration, its models, and conversion from and to published checkpoints."""

from almosaic.auto import register_encoder
from almosaic.encoder.classification import AudioMosaicForAudioClassification
from almosaic.encoder.configuration import AudioMosaicConfig, EncoderSettings
from almosaic.encoder.modeling import AudioMosaicModel

register_encoder()

__all__ = ["AudioMosaicConfig", "AudioMosaicForAudioClassification", "AudioMosaicModel", "EncoderSettings"]
