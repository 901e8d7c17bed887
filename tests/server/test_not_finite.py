"""A completion whose numbers are not finite is refused, and costs the others of its item nothing."""

import httpx
from safetensors.torch import load_file, save_file

from running_server import start_server
from small_models import save

BROKEN = 400


def test_the_other_completions_of_an_item_are_kept(tmp_path):
    teacher = save("llama", tmp_path / "teacher")
    weights = load_file(teacher / "model.safetensors")
    weights["model.embed_tokens.weight"][BROKEN] = float("inf")
    save_file(weights, teacher / "model.safetensors", {"format": "pt"})
    server = start_server(teacher, tmp_path / "values", "--device", "cpu")

    def ask(*completions, **rest):
        items = [{"prompt_token_ids": [9], "completions": list(completions)}]
        return httpx.post(f"{server.url}/v1/potentials", json={"items": items} | rest, timeout=60)

    refused = ask([10], [11, BROKEN, 12], [13, 14])
    assert (refused.status_code, refused.json()["code"]) == (503, "teacher-unavailable")
    assert refused.json()["detail"].endswith("not all finite")
    assert ask([10], [13, 14], cache="only").status_code == 200
    server.kill()
