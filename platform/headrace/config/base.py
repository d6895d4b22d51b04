"""What every section of a recipe is: frozen, loud about unknown keys, and told by its kind where there are several."""

from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

Share = Annotated[float, Field(ge=0.0, le=1.0)]


Labels = dict[str, Annotated[str, Field(pattern=r"^[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?$")]]
"""Of a node of the Ray cluster, by key; who asks for several is placed where all of them are."""


class Section(BaseModel):
    """A frozen section of a recipe; unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


def kind_is(default: str) -> BeforeValidator:
    """Sections that name no kind are of this one."""
    return BeforeValidator(lambda section: {"kind": default, **section} if isinstance(section, dict) else section)
