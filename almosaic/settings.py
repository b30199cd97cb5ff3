"""The base of every settings class: frozen, and an unknown key is an error."""

from pydantic import BaseModel, ConfigDict


class Settings(BaseModel):
    """Settings of one component, kept beside the component and composed by `recipe.py`."""

    model_config = ConfigDict(frozen=True, extra="forbid")
