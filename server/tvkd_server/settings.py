"""Every setting of `tvkd serve`: one model, from which the flags, the `TVKD_…` variables and `--help` are made."""

from pathlib import Path
from typing import Annotated

from pydantic import Field, PositiveInt, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

from tvkd_shared.errors import InvalidRequest


class ServeSettings(BaseSettings):
    """Serve a teacher's values over HTTP and keep them in a store."""

    model_config = SettingsConfigDict(
        env_prefix="TVKD_", cli_prog_name="tvkd serve", cli_kebab_case=True, cli_hide_none_type=True, extra="forbid"
    )

    model: str = Field(description="the teacher: a causal-LM directory, or a hub id (only then is the network used)")
    name: str | None = Field(None, description="name shown to clients; default: the last part of --model")
    store: Path = Field(Path("tvkd-store"), description="directory of the value store; made if missing")
    seal_bytes: PositiveInt = Field(
        8 << 20, description="bytes that gather in the store's log before they become one Zarr segment"
    )
    host: str = Field("127.0.0.1", description="address to listen on; the default is reached from this machine alone")
    port: Annotated[int, Field(ge=0, lt=2**16)] = Field(8077, description="port to listen on; 0 takes a free one")
    api_key: SecretStr | None = Field(
        None, description="bearer token that /v1 asks for; prefer the variable or the file, flags show in `ps`"
    )
    api_key_file: Path | None = Field(
        None, description="file that holds the bearer token, as secrets are mounted; it goes before --api-key"
    )

    dtype: str = Field("auto", description="auto: the checkpoint's own; float32 on a CPU, where bfloat16 is far slower")
    device: str = Field("auto", description="cpu, cuda, cuda:1, …; auto: a GPU if there is one")
    max_batch_tokens: PositiveInt = Field(
        4096, description="padded tokens in one pass of the teacher: raise it until the device's memory is used"
    )
    head_chunk: PositiveInt = Field(
        256, description="states whose logits exist at once: head_chunk × vocabulary × 4 bytes, about three times over"
    )
    max_queued_tokens: PositiveInt = Field(
        1_000_000, description="tokens admitted and not yet computed; beyond, requests get 429 and a time to retry"
    )
    max_request_tokens: PositiveInt = Field(
        262_144, description="tokens in one request; beyond, 413: split it, so that one client cannot fill the queue"
    )
    max_request_bytes: PositiveInt = Field(16 << 20, description="bytes of one request's body; beyond, 413")
    drain_seconds: PositiveInt = Field(
        30, description="how long a stopping server finishes requests in flight; what is computed is kept in any case"
    )

    def bearer_token(self) -> str | None:
        """The API key; a file goes before flag and variable. Raises InvalidRequest if it cannot be sent."""
        if self.api_key_file is not None:
            try:
                token = self.api_key_file.read_text().strip()
            except (OSError, UnicodeDecodeError) as error:
                raise InvalidRequest(f"--api-key-file {self.api_key_file} cannot be read: {error}") from error
        elif self.api_key is not None:
            token = self.api_key.get_secret_value().strip()
        else:
            return None
        if not token or not token.isascii() or not token.isprintable():
            raise InvalidRequest("the API key is empty or not plain ASCII; leave it out to serve without one")
        return token
