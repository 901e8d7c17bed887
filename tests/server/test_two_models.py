"""Servers of two models on one folder."""

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

from running_server import start_server
from tvkd_client.source import ServerSource, StoreSource


def test_servers_of_two_models_fill_one_folder_at_once_and_both_are_read_back_whole(tiny_teacher, student, tmp_path):
    models, folder, both_are_up = (tiny_teacher, student), tmp_path / "values", Barrier(2, timeout=120)
    asked = [([8 + number, 9], [[50, 51 + number % 7, 52], [60]]) for number in range(100)]

    def fill(model) -> list:
        server = start_server(model, folder)
        try:
            source = ServerSource(server.url)
            both_are_up.wait()
            return [record for prompt, both in asked for record in source.fetch([prompt] * 2, both)]
        finally:
            server.kill()

    with ThreadPoolExecutor(2) as pool:
        answered = list(pool.map(fill, models))
    prompts = [prompt for prompt, _ in asked for _ in range(2)]
    completions = [completion for _, both in asked for completion in both]
    for model, records in zip(models, answered, strict=True):
        stored = StoreSource(folder, teacher_id=model.name).fetch(prompts, completions)
        assert [record.numbers.tobytes() for record in stored] == [record.numbers.tobytes() for record in records]
    assert all((one.value() != other.value()).all() for one, other in zip(*answered, strict=True))
