"""A certificate: a sample of a store's values, computed again by transformers in float32, and how far they were off."""

from collections.abc import Callable

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tvkd_shared.store import document
from tvkd_shared.store.block import Damaged
from tvkd_shared.store.files import Files

CERTIFICATES = "certificates"


class Certificate(BaseModel):
    """`errors` are quantiles of |stored − computed again|, over V_1, action logits and entropies of all states."""

    model_config = ConfigDict(extra="forbid")

    teacher: str
    made: float = Field(description="seconds since 1970")
    commit: int = Field(description="last commit of the store that the sample was drawn from")
    sequences: int
    numbers: int = Field(description="numbers compared")
    reference: str = Field(description="what computed them again")
    errors: dict[str, float] = Field(description="quantile, as text, to absolute error; `1.0` is the largest")

    @property
    def largest_error(self) -> float:
        return self.errors["1.0"]


def write_certificate(files: Files, certificate: Certificate) -> str:
    """Keep it in the store. Returns its file's name."""
    name = f"{CERTIFICATES}/{certificate.teacher}-{round(certificate.made * 1000):015d}.json"
    files.write({name: document.to_bytes(certificate.model_dump(mode="json"))})
    return name


def certificates(files: Files, damaged: Callable[[str, Exception], object]) -> list[Certificate]:
    """Every certificate, oldest first. `damaged` is told of those that fail their check."""
    found = []
    for name in files.names(CERTIFICATES):
        path = f"{CERTIFICATES}/{name}"
        try:
            found.append(Certificate.model_validate(document.from_bytes(files.read(path), path)))
        except (Damaged, ValidationError, FileNotFoundError) as damage:
            damaged(path, damage)
    return sorted(found, key=lambda certificate: certificate.made)
