"""What all sections of the config are made of: bounded types, `on_resume` classes, the base class.

Small because every file of the schema needs it, and it needs none of them.
"""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

FREE: dict[str, Any] = {"on_resume": "free"}
STATE: dict[str, Any] = {"on_resume": "state"}

Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[int, Field(ge=1)]
Count = Annotated[int, Field(ge=0)]
Decay = Annotated[float, Field(ge=0, lt=1)]
NonEmpty = Annotated[str, Field(min_length=1)]


class Section(BaseModel):
    """A frozen group of settings; unknown keys are errors, and so are numbers that JSON cannot hold."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)
