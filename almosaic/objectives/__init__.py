"""Pretraining objectives: views and masks in, loss and metrics out."""

from typing import Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError

from almosaic.encoder.configuration import AudioMosaicConfig
from almosaic.errors import AlmosaicError
from almosaic.objectives.autoencoder import MaskedAutoencoderObjective, MaskedAutoencoderSettings
from almosaic.objectives.base import Objective, ObjectiveOutput
from almosaic.objectives.clap import ClapObjective, ClapSettings
from almosaic.objectives.contrastive import ContrastiveObjective, ContrastiveSettings
from almosaic.objectives.matpac import MatpacObjective, MatpacSettings
from almosaic.objectives.position_prediction import PositionPredictionObjective, PositionPredictionSettings
from almosaic.objectives.token_prediction import TokenPredictionObjective, TokenPredictionSettings
from almosaic.settings import Settings

ObjectiveSettings = Annotated[
    ContrastiveSettings
    | ClapSettings
    | MatpacSettings
    | MaskedAutoencoderSettings
    | TokenPredictionSettings
    | PositionPredictionSettings,
    Field(discriminator="name"),
]
OBJECTIVES: dict[type[Settings], type[Objective]] = {
    ContrastiveSettings: ContrastiveObjective,
    ClapSettings: ClapObjective,
    MatpacSettings: MatpacObjective,
    MaskedAutoencoderSettings: MaskedAutoencoderObjective,
    TokenPredictionSettings: TokenPredictionObjective,
    PositionPredictionSettings: PositionPredictionObjective,
}


def objective_settings(stored: dict[str, Any] | None) -> ObjectiveSettings:
    """Settings from their dictionary in a config; contrastive with its defaults for None."""
    if stored is None:
        return ContrastiveSettings()
    try:
        return TypeAdapter(ObjectiveSettings).validate_python(stored)
    except ValidationError as error:
        first = error.errors()[0]
        raise AlmosaicError(
            f"expected the settings of an objective in the config, found {stored}: "
            f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
        ) from error


def build_objective(settings: ObjectiveSettings, encoder_config: AudioMosaicConfig) -> Objective:
    """The objective that these settings name, with fresh heads for this encoder."""
    return OBJECTIVES[type(settings)](settings, encoder_config)


__all__ = [
    "OBJECTIVES",
    "Objective",
    "ObjectiveOutput",
    "ObjectiveSettings",
    "build_objective",
    "objective_settings",
]
