"""The one place with an import side effect: makes the Auto* classes of transformers know ours.

`almosaic.encoder`, `almosaic.objectives.pretraining` and `almosaic.alm` call their function here when they
are imported, so `AutoModel.from_pretrained(folder)` works after `import almosaic.encoder`, without remote code.
"""

from transformers import (
    AutoConfig,
    AutoFeatureExtractor,
    AutoModel,
    AutoModelForAudioClassification,
    AutoModelForPreTraining,
)


def register_encoder() -> None:
    """AudioMosaic config, encoder, classifier and feature extractor."""
    from almosaic.encoder.configuration import AudioMosaicConfig
    from almosaic.encoder.modeling import AudioMosaicForAudioClassification, AudioMosaicModel
    from almosaic.features import AudioMosaicFeatureExtractor

    AutoConfig.register("audiomosaic", AudioMosaicConfig, exist_ok=True)
    AutoModel.register(AudioMosaicConfig, AudioMosaicModel, exist_ok=True)
    AutoModelForAudioClassification.register(
        AudioMosaicConfig, AudioMosaicForAudioClassification, exist_ok=True
    )
    AutoFeatureExtractor.register(AudioMosaicConfig, AudioMosaicFeatureExtractor, exist_ok=True)


def register_pretraining() -> None:
    """The encoder together with its pretraining objective."""
    from almosaic.encoder.configuration import AudioMosaicConfig
    from almosaic.objectives.pretraining import AudioMosaicForPreTraining

    AutoModelForPreTraining.register(AudioMosaicConfig, AudioMosaicForPreTraining, exist_ok=True)
