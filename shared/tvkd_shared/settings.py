"""How every command reads its settings: one model for flags and `TVKD_…` variables."""

from collections.abc import Collection, Mapping
from dataclasses import fields
from typing import Any, ClassVar, TypeVar

from pydantic import Field, ValidationError, ValidationInfo, create_model, field_validator
from pydantic_core import ErrorDetails
from pydantic_settings import (
    BaseSettings,
    CliApp,
    EnvSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from tvkd_shared.errors import InvalidRequest
from tvkd_shared.shaping import Shaping


class Command(BaseSettings):
    """A command's settings, each a flag and a `TVKD_…` variable, and what it does with them.

    A subclass names its program, as in `class Serve(Command, cli_prog_name="tvkd serve")`. `instead_of` has, for a
    setting, those in whose place it stands: a flag for it makes their variables count for nothing.
    """

    model_config = SettingsConfigDict(
        env_prefix="TVKD_", cli_kebab_case=True, cli_hide_none_type=True, cli_implicit_flags=True, extra="forbid"
    )
    instead_of: ClassVar[Mapping[str, Collection[str]]] = {}

    def run(self) -> int:
        """Do it. Returns the exit code. Raises the errors of `tvkd_shared.errors`."""
        raise NotImplementedError

    @classmethod
    def settings_customise_sources(
        cls, settings_cls: type[BaseSettings], init_settings: PydanticBaseSettingsSource, *_: Any, **__: Any
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return init_settings, _Variables(settings_cls, cls.instead_of)


Settings = TypeVar("Settings", bound=BaseSettings)


def shaping_fields(*choices: str, **defaults: Any) -> dict[str, Any]:
    """For `create_model`, a field for each of these choices of `Shaping`, by default all of them.

    `defaults` replace those of `Shaping`.
    """
    return {
        choice.name: (
            choice.type,
            Field(defaults.get(choice.name, choice.default), description=choice.metadata["help"]),
        )
        for choice in fields(Shaping)
        if not choices or choice.name in choices
    }


def shaping_command(program: str, *choices: str, **defaults: Any) -> Any:
    """A base for commands with a flag for each of `shaping_fields`. The command's `shaping` is what they choose."""
    flags = shaping_fields(*choices, **defaults)

    class ShapingCommand(create_model("ShapingFlags", __base__=Command, **flags)):  # type: ignore[misc]
        model_config = SettingsConfigDict(cli_prog_name=program)

        @property
        def shaping(self) -> Shaping:
            return Shaping(**{name: getattr(self, name) for name in flags})

        @field_validator(*flags)
        @classmethod
        def _check_choice(cls, value: Any, info: ValidationInfo) -> Any:
            return getattr(Shaping(**{str(info.field_name): value}), str(info.field_name))

    return ShapingCommand


def from_command_line(model: type[Settings], argv: list[str]) -> Settings:
    """Settings from flags, then `TVKD_…` variables, then defaults. Raises InvalidRequest that names every wrong one."""
    try:
        return CliApp.run(model, cli_args=argv)
    except ValidationError as error:
        raise InvalidRequest("; ".join(_mistake(model, fault) for fault in error.errors())) from error
    except SettingsError as error:
        raise InvalidRequest(f"{error}; a list is written as JSON, such as [1.0, 2.0]") from error


class _Variables(EnvSettingsSource):
    """`TVKD_…` variables, without those in whose place a flag stands."""

    def __init__(self, model: type[BaseSettings], instead_of: Mapping[str, Collection[str]]) -> None:
        super().__init__(model)
        self._instead_of = instead_of

    def __call__(self) -> dict[str, Any]:
        # A field with an alias, such as --json, would be read from a variable without the prefix.
        settings = self.settings_cls.model_fields
        replaced = {name for flag in self.current_state for name in self._instead_of.get(flag, ())}
        return {name: value for name, value in super().__call__().items() if name in settings and name not in replaced}


def _mistake(model: type[BaseSettings], fault: ErrorDetails) -> str:
    message = fault["msg"].removeprefix("Value error, ")
    if not fault["loc"]:
        return message
    field = str(fault["loc"][0])
    prefix = model.model_config.get("env_prefix", "")
    if fault["type"] == "missing":
        return f"--{field.replace('_', '-')} is needed (or {prefix}{field.upper()} in the environment)"
    return f"--{field.replace('_', '-')}: {message}"
