"""What a detector and a mitigation have in common: a name, a line about each, and hyperparameters that can be read."""

from __future__ import annotations

from typing import ClassVar, Self

from pydantic import BaseModel, ConfigDict

from banaudit.results import Scalar


class Method(BaseModel):
    """A method is its hyperparameters, each declared once as a field with a default and a docstring."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)

    name: ClassVar[str]
    """Name on the command line and in reports."""
    title: ClassVar[str]
    """One line: what it looks for, or what it does."""
    needs: ClassVar[str]
    """What it cannot do without, beyond the network."""

    def settings(self) -> dict[str, Scalar]:
        """Every hyperparameter with its value, for the report."""
        return dict(self.model_dump(mode="json"))

    def with_settings(self, changes: dict[str, str]) -> Self:
        """The same method with some hyperparameters read from text (``--set name.key=value``).

        Raises:
            pydantic.ValidationError: An unknown name or a value out of range.
        """
        return type(self).model_validate({**self.model_dump(), **changes})
