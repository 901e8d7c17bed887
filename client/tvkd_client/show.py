"""`tvkd show`: one pair, each token coloured by its shaping ψ_t, the number under it, so that no colour is needed."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field, NonNegativeInt, SecretStr, model_validator
from rich.console import Console

from tvkd_client.dataset_flags import DatasetFlags
from tvkd_client.picture import TokenShaping, draw, write
from tvkd_client.source import ServerSource, StoreSource, source_at
from tvkd_shared.ending import Ending, declared_eos
from tvkd_shared.errors import InvalidRequest
from tvkd_shared.record import Record
from tvkd_shared.settings import shaping_command
from tvkd_shared.shaping import POTENTIALS, Shaping

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_Flags: Any = shaping_command("tvkd show", "gamma", "temperature", "potential", "terminal", "form")


class Show(_Flags, DatasetFlags, cli_prog_name="tvkd show"):  # type: ignore[misc]
    """Show one pair of a preference data set, coloured token by token by the teacher's shaping."""

    # TVKD_STORE is often set for `tvkd serve`; it must not stand against --server.
    instead_of: ClassVar[dict[str, list[str]]] = {"server": ["store"], "store": ["server"]}

    tokenizer: str = Field(description="the student's tokenizer: a directory, or a hub id (only then the network)")
    row: NonNegativeInt = Field(0, description="which pair, counted from 0")
    server: str | None = Field(None, description="URL of `tvkd serve`; what its store lacks is computed")
    store: str | None = Field(None, description="a filled store, folder or s3://…, in place of a server")
    teacher_id: str | None = Field(None, description="which teacher, when the store holds several")
    teacher_reference: str | None = Field(
        None,
        description="for a potential of two models: what the teacher's DPO started from, a URL or a store",
    )
    teacher_reference_id: str | None = Field(None, description="which model, when that store holds several")
    api_key: SecretStr | None = Field(None, description="bearer token of the server; prefer the variable")
    html: Path | None = Field(None, description="also write it as an HTML file")
    svg: Path | None = Field(None, description="also write it as an SVG picture")

    @model_validator(mode="after")
    def _check_source(self) -> "Show":
        if (self.server is None) == (self.store is None):
            raise ValueError("give --server or --store, one of them")
        relative, based = POTENTIALS[self.potential].relative, self.teacher_reference is not None
        if relative and not based:
            raise ValueError(f"--potential {self.potential} compares two models: give --teacher-reference")
        if based and not relative:
            raise ValueError("--teacher-reference is for potentials that compare two models, as --potential implicit")
        return self

    def run(self) -> int:
        """Print the pair, and write the files asked for. Raises the errors of `tvkd_shared.errors`."""
        shaping: Shaping = self.shaping
        source = self._source(shaping)
        # A wrong port or folder is known before TRL is imported, which takes seconds.
        print(f"tvkd show: reading {self.dataset}, values of model {source.teacher_id}", file=sys.stderr)
        import datasets  # noqa: PLC0415

        from tvkd_client.preference_tokens import (  # noqa: PLC0415
            check_vocabulary,
            load_tokenizer,
            tokenize_preferences,
        )

        datasets.disable_progress_bars()
        tokenizer = load_tokenizer(self.tokenizer)
        pairs = self.pairs()
        if self.row >= len(pairs):
            raise InvalidRequest(f"--row {self.row} is not there; {self.dataset} has rows 0 … {len(pairs) - 1}")
        tokens = tokenize_preferences(pairs.select([self.row]), tokenizer, str(self.dataset))
        pair = tokens[0]
        sides = [pair["chosen_ids"], pair["rejected_ids"]]
        asked = [pair["prompt_ids"]] * 2, sides
        # Ids of another vocabulary are other keys: a store does not hold them, and says so.
        if isinstance(source, ServerSource):
            check_vocabulary(tokenizer, source.client.teacher(), source.client, [tokens])
        records = source.fetch(*asked)
        bases: list[Record] | list[None] = [None, None]
        if self.teacher_reference is not None:
            bases = source_at(self.teacher_reference, teacher_id=self.teacher_reference_id).fetch(*asked)
        ending = Ending(tokenizer, declared_eos(self.tokenizer))
        chosen, rejected = (
            token_shaping(side, record, shaping, ending, tokenizer, base=base)
            for side, record, base in zip(sides, records, bases, strict=True)
        )
        picture = draw(str(tokenizer.decode(pair["prompt_ids"])), chosen, rejected, shaping)
        Console().print(picture)
        if self.html or self.svg:
            write(picture, html=self.html, svg=self.svg)
        return 0

    def _source(self, shaping: Shaping) -> ServerSource | StoreSource:
        if self.store is not None:
            return StoreSource(self.store, shaping.temperatures, self.teacher_id)
        key = self.api_key.get_secret_value() if self.api_key else None
        return ServerSource(str(self.server), shaping.temperatures, key, self.teacher_id)


def token_shaping(
    completion: Sequence[int],
    record: Record,
    shaping: Shaping,
    ending: Ending,
    tokenizer: "PreTrainedTokenizerBase",
    *,
    base: Record | None = None,
) -> TokenShaping:
    """ψ of each token of a completion, from its record and that of a relative potential's base; the tokens as text."""
    psi_T = shaping.psi(record, kept=len(completion), end=ending.of(completion), base=base)
    return TokenShaping([str(tokenizer.decode([token])) for token in completion], psi_T)
