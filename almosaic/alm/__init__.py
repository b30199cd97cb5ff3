"""The audio-language model: configuration, projectors, model, processor, and what a stage trains."""

from almosaic.alm.configuration import AlmosaicConfig
from almosaic.alm.modeling import AlmosaicForConditionalGeneration
from almosaic.alm.processing import AlmosaicProcessor, audio_token_cost
from almosaic.alm.tuning import TuneSettings, apply_tuning, load_partial
from almosaic.auto import register_alm

register_alm()

__all__ = [
    "AlmosaicConfig",
    "AlmosaicForConditionalGeneration",
    "AlmosaicProcessor",
    "TuneSettings",
    "apply_tuning",
    "audio_token_cost",
    "load_partial",
]
