"""almosaic: from a masked audio encoder to a chat that provably listens.

Names are loaded on first use, so that `import almosaic` costs nothing.
"""

import importlib
from typing import Any

__version__ = "0.1.0"

_HOME_OF = {
    "load_audio": "almosaic.audio",
    "log_mel_fbank": "almosaic.features",
    "AudioMosaicFeatureExtractor": "almosaic.features",
    "PatchGrid": "almosaic.masking",
    "PatchMask": "almosaic.masking",
    "AudioMosaicConfig": "almosaic.encoder",
    "AudioMosaicModel": "almosaic.encoder",
    "AudioMosaicForAudioClassification": "almosaic.encoder",
    "AudioMosaicForPreTraining": "almosaic.objectives.pretraining",
    "AlmosaicConfig": "almosaic.alm",
    "AlmosaicForConditionalGeneration": "almosaic.alm",
    "AlmosaicProcessor": "almosaic.alm",
    "embed": "almosaic.inference",
    "generate": "almosaic.inference",
    "load_model": "almosaic.inference",
    "stream": "almosaic.inference",
    "TokenMemory": "almosaic.token_memory",
    "AlmosaicError": "almosaic.errors",
    "AudioError": "almosaic.errors",
}

__all__ = ["__version__", *sorted(_HOME_OF)]


def __getattr__(name: str) -> Any:
    """Import a public name from its home the first time it is asked for."""
    if name not in _HOME_OF:
        raise AttributeError(f"module 'almosaic' has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(importlib.import_module(_HOME_OF[name]), name)


def __dir__() -> list[str]:
    return __all__
