"""Work in several processes, and results files that several of them change."""

from __future__ import annotations

import pickle
import threading

import pytest
from pydantic import BaseModel
from stand_ins import Accuser

from banaudit.bench import repairs, runner
from banaudit.bench.parallel import spread
from banaudit.bench.repair_results import Amount
from banaudit.bench.repairs import run_repairs
from banaudit.bench.results_files import update_results
from banaudit.bench.victims import VictimRecipe
from banaudit.bench.workplace import Workplace
from banaudit.mitigations import FineTuning


@pytest.mark.parametrize("jobs", [1, 2])
def test_every_item_comes_back_with_its_result(jobs):
    assert sorted(spread(abs, [-3, 2, -1], jobs)) == [(-3, 3), (-1, 1), (2, 2)]


@pytest.mark.parametrize("jobs", [1, 2])
def test_the_first_error_ends_the_work(jobs):
    with pytest.raises(ValueError, match="'two'"):
        list(spread(int, ["1", "two", "3"], jobs))


class Numbers(BaseModel):
    kind: str = "numbers"
    held: tuple[int, ...] = ()


def test_what_several_write_at_once_is_all_kept(tmp_path):
    path = tmp_path / "numbers.json"

    def add(start):
        for number in range(start, start + 20):
            update_results(path, Numbers(), lambda numbers, n=number: Numbers(held=(*numbers.held, n)))

    workers = [threading.Thread(target=add, args=(start,)) for start in (0, 100, 200)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    held = Numbers.model_validate_json(path.read_bytes()).held
    assert sorted(held) == [*range(20), *range(100, 120), *range(200, 220)]
    assert [item.name for item in tmp_path.iterdir()] == ["numbers.json"]


def test_scans_and_repairs_can_go_to_other_processes(tmp_path, monkeypatch):
    sent = []

    def send(work, items, jobs):
        sent.append((pickle.loads(pickle.dumps(work)), jobs))
        return iter(())

    monkeypatch.setattr(runner, "spread", send)
    monkeypatch.setattr(repairs, "spread", send)
    place = Workplace(cache=tmp_path, device="cpu", jobs=3, progress=print)
    shared = {"split": "development", "detectors": [Accuser()], "workplace": place}
    runner.run([VictimRecipe()], tmp_path / "scans.json", **shared)
    run_repairs(
        [VictimRecipe()],
        tmp_path / "repairs.json",
        mitigations=[FineTuning()],
        amounts=[Amount.parse("5%")],
        **shared,
    )
    assert [jobs for _, jobs in sent] == [3, 3]
    for work, _ in sent:
        work((1, VictimRecipe()))  # nothing is trained, so there is nothing to do
    assert list(tmp_path.iterdir()) == []
