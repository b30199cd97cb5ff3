"""The one place with an import side effect: makes the Auto* classes of transformers know ours.

`almosaic.encoder` and `almosaic.alm` call their function here when they are imported, so that
`AutoModel.from_pretrained(folder)` works after `import almosaic.encoder`, without remote code.
"""

from transformers import (
    AutoConfig,
    AutoFeatureExtractor,
    AutoModel,
    AutoModelForAudioClassification,
    AutoModelForMultimodalLM,
    AutoProcessor,
)


def register_encoder() -> None:
    """AudioMosaic config, encoder, classifier and feature extractor."""
    from almosaic.encoder.classification import AudioMosaicForAudioClassification
    from almosaic.encoder.configuration import AudioMosaicConfig
    from almosaic.encoder.modeling import AudioMosaicModel
    from almosaic.features import AudioMosaicFeatureExtractor

    AutoConfig.register("audiomosaic", AudioMosaicConfig, exist_ok=True)
    AutoModel.register(AudioMosaicConfig, AudioMosaicModel, exist_ok=True)
    AutoModelForAudioClassification.register(
        AudioMosaicConfig, AudioMosaicForAudioClassification, exist_ok=True
    )
    AutoFeatureExtractor.register(AudioMosaicConfig, AudioMosaicFeatureExtractor, exist_ok=True)


def register_alm() -> None:
    """The audio-language model and its processor."""
    from almosaic.alm.configuration import AlmosaicConfig
    from almosaic.alm.modeling import AlmosaicForConditionalGeneration
    from almosaic.alm.processing import AlmosaicProcessor

    AutoConfig.register("almosaic", AlmosaicConfig, exist_ok=True)
    AutoModelForMultimodalLM.register(AlmosaicConfig, AlmosaicForConditionalGeneration, exist_ok=True)
    AutoProcessor.register(AlmosaicConfig, AlmosaicProcessor, exist_ok=True)
