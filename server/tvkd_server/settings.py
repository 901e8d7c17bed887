"""Every setting of `tvkd serve`: one model, from which the flags, the `TVKD_…` variables and `--help` are made."""

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, PositiveInt, SecretStr, model_validator

from tvkd_shared.errors import InvalidRequest
from tvkd_shared.settings import Command

_OF_ONE_ENGINE = {
    "transformers": ("device", "max_batch_tokens"),
    "vllm": (
        "tensor_parallel_size", "gpu_memory_utilization", "max_model_len", "quantization", "max_num_batched_tokens",
        "engine_args",
    ),
}  # fmt: skip


class ServeSettings(Command, cli_prog_name="tvkd serve"):
    """Serve a teacher's values over HTTP and keep them in a store."""

    model: str = Field(
        description="the teacher: directory of a causal LM or of a PEFT adapter, or a hub id (only then the network)"
    )
    name: str | None = Field(None, description="name shown to clients; default: the last part of --model")
    store: str = Field(
        "tvkd-store", description="the value store: a directory, or s3://…, gs://…, az://…; made if missing"
    )
    seal_bytes: PositiveInt = Field(
        8 << 20, description="bytes of recent values that gather before they become one Zarr segment"
    )
    publish_seconds: Annotated[float, Field(ge=0, le=60)] = Field(
        0.2, description="object storage: how long values gather before they are published, and answered, together"
    )
    mantissa_bits: Annotated[int, Field(ge=4, le=23)] | None = Field(
        None,
        description="a new store's precision: 23 is float32; 10 halves its bytes, at 2^-11 of each number",
    )
    host: str = Field("127.0.0.1", description="address to listen on; the default is reached from this machine alone")
    port: Annotated[int, Field(ge=0, lt=2**16)] = Field(8077, description="port to listen on; 0 takes a free one")
    api_key: SecretStr | None = Field(
        None, description="bearer token that /v1 asks for; prefer the variable or the file, flags show in `ps`"
    )
    api_key_file: Path | None = Field(
        None, description="file that holds the bearer token, as secrets are mounted; it goes before --api-key"
    )
    api_keys: Path | None = Field(
        None,
        description="TOML file of several keys, by their SHA-256, with names and limits; read again when it changes",
    )
    tls_cert: Path | None = Field(None, description="PEM file of the server's certificate and its chain, for https")
    tls_key: Path | None = Field(None, description="PEM file of the private key that belongs to --tls-cert")

    engine: Literal["transformers", "vllm"] = Field(
        "transformers", description="transformers: in this process, one device; vllm: for speed, and more than one GPU"
    )
    dtype: str = Field("auto", description="auto: the checkpoint's own; float32 on a CPU, where bfloat16 is far slower")
    device: str = Field("auto", description="transformers: cpu, cuda, cuda:1, …; auto: a GPU if there is one")
    max_batch_tokens: PositiveInt = Field(
        4096,
        description="transformers: padded tokens in one pass; raise it until the device's memory is used",
    )
    tensor_parallel_size: PositiveInt = Field(
        1, description="vllm: GPUs that share each layer, for a teacher too large for one"
    )
    gpu_memory_utilization: Annotated[float, Field(gt=0, le=1)] | None = Field(
        None,
        description="vllm: share of each GPU's memory for weights and key-value cache (vLLM's own default: 0.92); "
        "leave room for head_chunk's logits",
    )
    max_model_len: PositiveInt | None = Field(
        None, description="vllm: longest sequence served; shorter than the model's own saves memory"
    )
    quantization: str | None = Field(
        None,
        description="vllm: quantise while loading, such as fp8; it is part of the teacher's id. A checkpoint that is "
        "quantised already needs no flag",
    )
    max_num_batched_tokens: PositiveInt | None = Field(
        None,
        description="vllm: tokens in one step of the engine, longer prompts go in chunks; more is faster until the "
        "device is busy, and costs memory",
    )
    engine_args: dict[str, Any] = Field(
        {}, description="vllm: JSON of further arguments of vLLM's own, those that cannot change a value"
    )
    head_chunk: PositiveInt = Field(
        256, description="states whose logits exist at once: head_chunk × vocabulary × 4 bytes, two to three times over"
    )
    max_queued_tokens: PositiveInt = Field(
        1_000_000, description="tokens admitted and not yet computed; beyond, requests get 429 and a time to retry"
    )
    max_request_tokens: PositiveInt = Field(
        262_144, description="tokens in one request; beyond, 413: split it, so that one client cannot fill the queue"
    )
    max_request_bytes: PositiveInt = Field(
        4 << 20, description="bytes of one request's body; beyond, 413. JSON may have 1 MB of them, Arrow all"
    )
    max_connections: PositiveInt = Field(
        1000, description="open connections; beyond, one that waits for a request makes room, or the new one gets 429"
    )
    transfer_seconds: Annotated[float, Field(gt=0)] = Field(
        60, description="how long a request may take to arrive, and an answer to be read, before the connection is cut"
    )
    request_seconds: Annotated[float, Field(gt=0)] = Field(
        540,
        description="how long a request may wait for its values, then 503 and a time to ask again; what was computed "
        "is kept. Less than clients and proxies wait, which is 600",
    )
    drain_seconds: PositiveInt = Field(
        30, description="how long a stopping server finishes requests in flight; what is computed is kept in any case"
    )

    log_format: Literal["text", "json"] = Field(
        "text", description="json: a JSON object a line, with ids and times, and one for each request for values"
    )
    otlp_endpoint: str | None = Field(
        None,
        description="URL that OpenTelemetry traces are sent to by OTLP over HTTP, such as "
        "http://localhost:4318/v1/traces; needs tvkd[otel]",
    )

    @model_validator(mode="after")
    def _flags_of_the_engine(self) -> Self:
        for engine, names in _OF_ONE_ENGINE.items():
            given = [name for name in names if name in self.model_fields_set]
            if given and engine != self.engine:
                flag = given[0].replace("_", "-")
                raise ValueError(f"--{flag} belongs to --engine {engine}, and this is --engine {self.engine}")
        return self

    @model_validator(mode="after")
    def _both_files_of_tls(self) -> Self:
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ValueError("--tls-cert and --tls-key belong together: give both, or neither")
        return self

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


def reference_settings(model: str) -> ServeSettings:
    """transformers in float32 on the CPU, to compare with: not what the environment says of the engine that serves."""
    return ServeSettings.model_construct(model=model, device="cpu", dtype="float32")
