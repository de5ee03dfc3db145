"""Clusters that are made of sums alone: Lloyd's algorithm of somebody who sees all points, and the same groups as clustering in the
clear."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from door import journal
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment
from sklearn.metrics import adjusted_rand_score
from tiny import tiny_config as tiny_files
from torch import Tensor

from fedquilt import assign
from fedquilt.assign.chosen import (
    AXES,
    CENTRES,
    FLAT,
    MASS,
    SLOTS,
    SOURCE,
    Question,
    chosen,
    going_on_with,
    located,
    matched,
    moments,
    packed,
    principal,
    unpacked,
    weights,
)
from fedquilt.engine.summing import places
from fedquilt.errors import CompositionError, ConfigError, QuorumError, StateError
from fedquilt.method import remembering
from fedquilt.privacy.sums import BITS, Adding, decoded, encoded
from fedquilt.runs.build import assemble
from fedquilt.runs.launch import run
from fedquilt.runs.plan import plan
from fedquilt.testing import run_tiny, tiny_base, tiny_config, tiny_partition, tiny_tasks
from fedquilt.types import Hub, Round, Slot

NOW = Round(1, 7)


class Crowd:
    """Clients with slots of some tasks: looks around the task's own place."""

    def __init__(self, tasks: Sequence[Sequence[int]], d: int = 12, spread: float = 0.3, seed: int = 0) -> None:
        stream = np.random.default_rng(seed)
        places = stream.normal(0, 1, (1 + max(t for own in tasks for t in own), d))
        self.tasks = tasks
        self.looks = [torch.tensor(places[list(own)] + stream.normal(0, spread, (len(own), d))).float() for own in tasks]
        self.samples = [[int(stream.integers(20, 400)) for _ in own] for own in tasks]
        self.slots = [Slot(c, i) for c, own in enumerate(tasks) for i in range(len(own))]
        self.asked: list[Question] = []

    def ask(self, how: chosen) -> object:
        def add(question: Question) -> Tensor:
            self.asked.append(question)
            n = len(self.tasks)
            adding = Adding(n)
            for c in range(n):
                adding.add(c, encoded(how.answer(question, self.looks[c], self.samples[c], NOW.seed), n))
            assert len(adding.words) == how.size(question, self.looks[0].shape[1])
            return decoded(adding.total())

        return add

    def settled(self, how: chosen, memory: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
        found = dict(memory or {})
        how.settle(memory or {}, self.slots, NOW, self.ask(how), found)  # type: ignore[arg-type]
        return found

    def rows(self, how: chosen, memory: dict[str, Tensor]) -> list[list[int]]:
        told = places(memory)
        return [how.choose(told, looks, n, NOW.seed) for looks, n in zip(self.looks, self.samples, strict=True)]

    def agreement(self, rows: list[list[int]]) -> float:
        return float(adjusted_rand_score([t for own in self.tasks for t in own], [row for own in rows for row in own]))


SIX = [(0, 1, 2), (0, 1), (1, 2), (0, 2), (0, 1, 2), (1, 2)]


def seeing(crowd: Crowd, axes: np.ndarray, begin: np.ndarray) -> tuple[np.ndarray, list[list[int]]]:
    """Lloyd's algorithm by somebody who sees every point: another implementation, in whole numbers of 2^-32."""
    w = [np.minimum(np.array(n, dtype=float), 256) / 256 for n in crowd.samples]
    x = [looks.double().numpy() for looks in crowd.looks]

    def whole(parts: list[np.ndarray]) -> np.ndarray:
        return sum(np.array([round(float(v) * 2**BITS) for v in part.ravel()], dtype=object) for part in parts)  # type: ignore[return-value]

    def number(total: np.ndarray) -> np.ndarray:
        return np.array([float(v) for v in total]) / 2**BITS  # both exact below 2^53

    mass = number(whole([np.array([a.sum()]) for a in w]))[0]
    mean = number(whole([a @ b for a, b in zip(w, x, strict=True)])) / mass
    variance = number(whole([a @ (b * b) for a, b in zip(w, x, strict=True)])) / mass - mean * mean
    points = [((b - mean) / np.sqrt(variance)) @ axes for b in x]
    centres = begin
    while True:
        labels = []
        for a, p in zip(w, points, strict=True):
            cost = ((p[:, None] - centres[None]) ** 2).sum(2) * a[:, None]
            labels.append(linear_sum_assignment(cost)[1])
        sums, masses = [], []
        for c in range(len(centres)):
            sums.append(
                number(whole([(p[own == c] * a[own == c, None]).sum(0) for a, p, own in zip(w, points, labels, strict=True)]))
            )
            masses.append(number(whole([np.array([a[own == c].sum()]) for a, own in zip(w, labels, strict=True)]))[0])
        after = np.stack([s / m if m else old for s, m, old in zip(sums, masses, centres, strict=True)])
        if np.array_equal(after, centres):
            return centres, [[int(c) + 1 for c in own] for own in labels]
        centres = after


@pytest.mark.parametrize("seed", range(6))
def test_the_centres_are_to_the_bit_those_of_somebody_who_sees_all_points(seed: int) -> None:
    crowd, how = Crowd(SIX, seed=seed), chosen(3, starts=1)
    memory = crowd.settled(how)
    first = crowd.asked[2]
    assert first.centres is not None
    assert first.axes is not None
    centres, rows = seeing(crowd, first.axes.numpy(), first.centres[0].numpy())
    assert np.array_equal(memory[CENTRES].numpy(), centres)
    assert crowd.rows(how, memory) == rows


@pytest.mark.parametrize("constraint", ["cannot-link", "none"])
def test_slots_of_a_task_find_the_same_row(constraint: str) -> None:
    """Also where no client has more than one task, and nothing but the points tells them apart."""
    for seed in range(5):
        alone = Crowd([(t,) for t in (0, 1, 2, 0, 1, 2, 0, 1)], seed=seed)
        several = Crowd(SIX, seed=seed)
        for crowd in (alone, several):
            how = chosen(3, constraint=constraint)  # type: ignore[arg-type]
            assert crowd.agreement(crowd.rows(how, crowd.settled(how))) == 1.0


def test_points_of_many_numbers_are_sketched_and_found_all_the_same() -> None:
    crowd, how = Crowd(SIX, d=3000, spread=1.0), chosen(3)
    memory = crowd.settled(how)
    assert memory[AXES].shape == (256, 6)
    assert crowd.agreement(crowd.rows(how, memory)) == 1.0


def test_slots_of_one_client_never_share_a_row() -> None:
    crowd, how = Crowd([(0, 0, 0), (0, 0), (0,)]), chosen(3)
    for rows in crowd.rows(how, crowd.settled(how)):
        assert len(set(rows)) == len(rows)


def test_nothing_is_asked_while_nobody_is_new_or_somebody_would_be_seen_alone() -> None:
    """What one newcomer adds is the difference to what was added before: it chooses among the centres that there are."""
    few, more, how = Crowd(SIX[:5]), Crowd(SIX), chosen(3)
    more.looks[:5], more.samples[:5] = few.looks, few.samples
    memory = few.settled(how)
    for slots in (few.slots[2:5], few.slots, more.slots):
        found: dict[str, Tensor] = {}
        how.settle(memory, slots, NOW, more.ask(how), found)  # type: ignore[arg-type]
        assert found == {}
    assert more.asked == []
    assert more.agreement(more.rows(how, memory)) == 1.0


@pytest.mark.parametrize("seed", range(4))
def test_who_comes_later_finds_the_rows_of_those_before(seed: int) -> None:
    """Two more clients of the same tasks: nobody else moves, and moments and axes are those of the first."""
    how, few = chosen(3), Crowd(SIX[:4], seed=seed)
    memory = few.settled(how)
    more = Crowd([*SIX[:4], (0, 1), (2, 0)], seed=seed)
    more.looks[:4], more.samples[:4] = few.looks, few.samples
    again = more.settled(how, memory)
    assert all(question.axes is not None for question in more.asked)
    assert more.rows(how, again)[:4] == few.rows(how, memory)
    assert more.agreement(more.rows(how, again)) == 1.0
    assert {tuple(pair) for pair in again[SLOTS].tolist()} == set(more.slots)


def test_rows_keep_their_meaning_when_clusters_are_found_anew() -> None:
    """Whatever order Lloyd's algorithm ends in, a row is what is nearest to what it was."""
    before = torch.tensor([[0.0, 0.0], [5.0, 0.0], [0.0, 5.0]])
    centres = torch.tensor([[0.1, 5.0], [0.0, 0.2], [5.0, 0.3]])
    assert matched(centres, before, torch.ones(3)) == [1, 2, 0]


def test_a_row_that_nobody_was_in_pushes_nobody_out_of_theirs() -> None:
    """Its centre is a draw. With it two clusters moved along to keep it, and the last one's adapter was left behind."""
    before = torch.tensor([[0.0, 0.0], [9.0, 9.0], [3.0, 3.0]])
    centres = torch.tensor([[0.0, 0.5], [9.0, 9.0], [14.0, 14.0]])
    mass = torch.tensor([1.0, 1.0, 0.0])
    order = matched(centres, before, mass)
    assert order == [0, 1, 2]
    assert matched(centres, before, torch.ones(3)) == [0, 2, 1]
    assert going_on_with(centres[order], before, mass).tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("seed", [0, 1, 2, 5, 8, 9])  # of the others two tasks are put together
def test_who_was_there_keeps_its_adapter_when_a_small_federation_grows(seed: int) -> None:
    """Fewer tasks than rows at first, so some rows are nobody's; what each old slot trained is where it is afterwards."""
    how, few = chosen(5), Crowd([(0,), (1,), (2,)], seed=seed)
    more = Crowd([(0,), (1,), (2,), *[(task,) for task in (0, 1, 2, 3, 4, 3, 4, 0, 1)]], seed=seed)
    more.looks[:3], more.samples[:3] = few.looks, few.samples
    memory = few.settled(how)
    before = few.rows(how, memory)
    again = more.settled(how, memory)
    after = more.rows(how, again)
    assert more.agreement(after) == 1.0
    for (old,), (new,) in zip(before, after[:3], strict=True):
        assert int(again[SOURCE][new]) == old


def test_a_row_goes_on_with_the_adapter_of_the_slots_that_it_has_now() -> None:
    """Row 1 was two tasks and is one of them; the other got row 2, whose slots are in row 3 now. Row 4 nobody was in."""
    before = torch.tensor([[0.5, 0.0], [0.0, 8.3], [0.0, 7.7], [0.4, 0.0]])
    centres = torch.tensor([[1.0, 0.0], [0.0, 0.0], [0.0, 8.0], [0.0, 0.1]])
    mass = torch.tensor([2.0, 1.0, 1.0, 0.0])
    assert going_on_with(centres, before, mass).tolist() == [0, 1, 1, 3, 4]
    assert going_on_with(before, before, mass).tolist() == [0, 1, 2, 3, 4]


def test_clusters_that_are_found_anew_say_with_what_their_rows_go_on() -> None:
    """Ten newcomers make of one cluster two and of two one: where clusters are now is where some row was before."""
    turn = torch.linalg.qr(torch.randn(60, 3, generator=torch.Generator().manual_seed(0)))[0]
    where = {0: [1.0, 0, 0], 3: [0.0, 8, -0.56], 4: [0.0, 8, 0.56]}
    looks = [(turn @ torch.tensor(where.get(client, [0.0, 0, 0])))[None] for client in range(15)]
    how, memory, rows = chosen(3), dict[str, Tensor](), []
    for number, clients in ((1, 5), (2, 15)):

        def add(question: Question, clients: int = clients) -> Tensor:
            return torch.stack([how.answer(question, look, [256], 0) for look in looks[:clients]]).sum(0)

        found = dict(memory)
        how.settle(memory, [Slot(client, 0) for client in range(clients)], Round(number, 0), add, found)
        memory = found
        rows.append([how.choose(places(memory), look, [256], 0)[0] for look in looks[:clients]])
    before, after = rows
    source = memory[SOURCE].tolist()
    assert [client for client in range(5) if before[client] != after[client]], "nothing was put to the test"
    for client in range(5):
        assert source[after[client]] == before[client] or client in (3, 4), "two of one cluster had a row each"
    assert source[after[3]] in (before[3], before[4])


def test_what_was_found_of_places_is_remembered_and_moves_adapters_and_moments() -> None:
    hub = Hub({"w": torch.arange(3.0)[:, None]}, memory={"momentum/w": 10 * torch.arange(3.0)[:, None], CENTRES: torch.zeros(2, 1)})
    after = remembering(hub, {CENTRES: torch.ones(2, 1), SOURCE: torch.tensor([0, 2, 2])})
    assert after.bank["w"].flatten().tolist() == [0.0, 2.0, 2.0]
    assert after.memory["momentum/w"].flatten().tolist() == [0.0, 20.0, 20.0]
    assert after.memory.keys() == {"momentum/w", CENTRES}
    assert torch.equal(after.memory[CENTRES], torch.ones(2, 1))


@pytest.mark.parametrize("after", range(5))
def test_what_was_found_before_a_sum_failed_is_not_asked_again(after: int) -> None:
    """Asked again of other clients, the two answers would differ by somebody's own. In the end the places are the same."""
    crowd, how, found = Crowd(SIX), chosen(3), dict[str, Tensor]()
    add = crowd.ask(how)

    def failing(question: Question) -> Tensor:
        if len(crowd.asked) == after:
            raise QuorumError("too few")
        return add(question)  # type: ignore[no-any-return,operator]

    with suppress(QuorumError):
        how.settle({}, crowd.slots, NOW, failing, found)
    crowd.asked, again = [], dict(found)
    how.settle(found, crowd.slots, NOW, add, again)  # type: ignore[arg-type]
    assert [question.mean is None for question in crowd.asked].count(True) == (0 if after else 1)
    assert [question.mean is not None and question.axes is None for question in crowd.asked].count(True) == (0 if after > 1 else 1)
    for key, x in crowd.settled(how).items():
        assert torch.equal(x, again[key]), key


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, 1e308])
def test_points_that_are_no_numbers_are_refused(bad: float) -> None:
    crowd, how = Crowd(SIX), chosen(3)
    memory = crowd.settled(how)
    looks = crowd.looks[0].double()
    looks[0, 0] = bad
    with pytest.raises(StateError, match="no numbers"):
        how.choose(places(memory), looks, crowd.samples[0], NOW.seed)


@pytest.mark.parametrize("total", [torch.zeros(7), torch.full((7,), torch.nan), -torch.ones(7)])
def test_sums_that_are_no_numbers_are_no_moments(total: Tensor) -> None:
    """One client can add anything."""
    for how in (moments, lambda x: principal(x, 2)):
        with pytest.raises(QuorumError, match="no numbers"):
            how(total.double())


def test_a_number_in_which_slots_do_not_differ_says_nothing() -> None:
    """Its variance is rounding, and would be divided by."""
    looks = torch.tensor([[1.0, 5.0], [2.0, 5.0]])
    how = chosen(2)
    mean, scale = moments(how.answer(Question(), looks, [256, 256], 0))
    assert scale[1] == torch.inf
    assert float(scale[0]) == pytest.approx(0.5)
    assert torch.equal(located(looks, Question(mean, scale), 0), torch.tensor([[-1.0, 0.0], [1.0, 0.0]], dtype=torch.float64))
    assert FLAT < 1


def test_the_mass_of_a_row_tells_whether_it_is_used() -> None:
    crowd, how = Crowd([(0,), (0,), (1,), (1,)], spread=0.05), chosen(5, constraint="none")
    memory = crowd.settled(how)
    used = {row for rows in crowd.rows(how, memory) for row in rows}
    assert {int(row) + 1 for row in torch.nonzero(memory[MASS]).flatten()} == used


@given(st.integers(1, 4), st.integers(1, 6), st.integers(1, 3))
def test_a_question_travels_whole(k: int, d: int, starts: int) -> None:
    q = min(d, 2 * k)
    parts = torch.randn(d).double(), torch.rand(d).double() + 0.1, torch.randn(d, q).double(), torch.randn(starts, k, q).double()
    for question in (Question(), Question(*parts[:2]), Question(*parts)):
        back = unpacked(packed(question), k, d, starts)
        assert all(a is b or torch.equal(a, b) for a, b in zip(question, back, strict=True))  # type: ignore[arg-type]
        assert len(packed(question)) == question.size


def ones(count: int, **changed: float) -> bytes:
    """So many ones, some of them changed: of looks of 2 numbers, 2 clusters and 2 axes 4 of moments, 4 of axes, 4 a start."""
    numbers = torch.ones(count).double()
    for place, value in changed.items():
        numbers[int(place[1:])] = value
    return numbers.numpy().tobytes()


@pytest.mark.parametrize(
    "data",
    [
        bytes(7),
        ones(3),
        ones(5),
        ones(8),
        ones(13),
        ones(8 + 4 * 4),
        ones(12, _2=0.0),
        ones(4, _3=torch.nan),
        ones(12, _9=torch.inf),
    ],
    ids=["no numbers", "too few", "more", "no centres", "one too many", "more starts", "a scale of zero", "no scale", "infinite"],
)
def test_centres_that_are_none_are_refused(data: bytes) -> None:
    assert unpacked(ones(12), 2, 2, 3).centres is not None
    with pytest.raises(StateError):
        unpacked(data, 2, 2, 3)


@pytest.mark.parametrize(("d", "k"), [(5, 2), (300, 4)])
def test_axes_are_the_principal_ones(d: int, k: int) -> None:
    """Against numpy's singular values of all points beside each other."""
    crowd, how = Crowd(SIX, d=d), chosen(k)
    total = crowd.ask(how)(Question())  # type: ignore[operator]
    told = Question(*moments(total))
    axes, wide = principal(crowd.ask(how)(told), k)  # type: ignore[operator]
    weight = torch.cat([weights(n) for n in crowd.samples])
    points = torch.cat([located(looks, told, NOW.seed) for looks in crowd.looks])
    _, values, right = np.linalg.svd((points * weight.sqrt()[:, None]).numpy(), full_matrices=False)
    assert np.allclose(wide.numpy(), values[:k] / float(weight.sum()) ** 0.5, atol=1e-6)
    assert np.allclose(np.abs(right[:k] @ axes.numpy()), np.eye(k), atol=1e-5)


def fltac(**method: object) -> object:
    base = {"lr": 1e-2, "steps": 1, "batch": 4, "tasks": 3}
    secure = {"secure_aggregation": method.pop("secure", False)}
    return tiny_config("fltac", rounds=2, method={**base, **method}).model_copy(update=secure)


def test_clients_choose_the_clusters_that_a_server_would_have_made() -> None:
    """The tiny federation: the same slots together, whatever the rows are called."""
    clear, hidden = fltac(), fltac(choice="clients", secure=True)
    there = assemble(hidden, tiny_base(hidden), tiny_tasks(), tiny_partition())  # type: ignore[arg-type]
    table = there.seated(run_tiny(hidden).hub).table  # type: ignore[arg-type]
    server = run_tiny(clear).hub.table  # type: ignore[arg-type]
    assert table.keys() == server.keys()
    assert adjusted_rand_score([table[slot] for slot in sorted(table)], [server[slot] for slot in sorted(server)]) == 1.0


def test_clients_look_at_their_data_as_in_the_clear() -> None:
    """The fingerprints that newcomers would send, of as many examples as their longer first phase trains on."""
    clear, hidden = fltac(first_effort=3.0), fltac(first_effort=3.0, choice="clients", secure=True)
    one = assemble(clear, tiny_base(clear), tiny_tasks(), tiny_partition())  # type: ignore[arg-type]
    other = assemble(hidden, tiny_base(hidden), tiny_tasks(), tiny_partition())  # type: ignore[arg-type]
    hub, now = one.program.init(one.adapter.init), Round(1, 0)
    jobs = one.program.plan(hub, one.engine.roster(1), now)
    other.engine.see([job.slot for job in jobs], now, other.adapter.init)
    for reply in one.engine.poll(one.engine.submit(jobs, hub.bank)):
        assert reply.fingerprint is not None
        assert torch.equal(reply.fingerprint, other.engine.seen_of[reply.slot])


def test_the_server_s_table_tells_no_row() -> None:
    hub = run_tiny(fltac(choice="clients", secure=True)).hub  # type: ignore[arg-type]
    assert set(hub.table.values()) == {0}


@pytest.mark.parametrize(
    ("method", "error", "message"),
    [
        ({"secure": True}, CompositionError, "(?s)kmeans must see content.*choice = 'clients'"),
        ({"choice": "clients"}, CompositionError, "(?s)clients choose rows, and do not add up.*secure_aggregation = true"),
        ({"choice": "clients", "features": "factors", "secure": True}, ConfigError, "clients choose by features = 'fisher'"),
        ({"choice": "clients", "estimate_tasks": True, "secure": True}, ConfigError, "known number of clusters"),
        ({"choice": "clients", "tasks": 2, "secure": True}, CompositionError, "3 slots for 2 clusters"),
    ],
)
def test_what_cannot_be_is_refused(method: dict[str, object], error: type[Exception], message: str) -> None:
    config = fltac(**method)
    with pytest.raises(error, match=message):
        assemble(config, tiny_base(config), tiny_tasks(), tiny_partition())  # type: ignore[arg-type]


@pytest.mark.parametrize("wrong", [{"k": 0}, {"k": 2, "starts": 0}])
def test_there_is_at_least_one(wrong: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="must be at least 1, got 0"):
        chosen(**wrong)  # type: ignore[arg-type]


def test_a_server_never_assigns_for_them() -> None:
    with pytest.raises(CompositionError, match="clients choose their rows"):
        assign.chosen(2)(None, None, None, NOW)  # type: ignore[arg-type]


@pytest.mark.parametrize("method", ["fedit", "fltac"])
def test_the_plan_has_the_bytes_of_the_run(method: str, tmp_path: Path) -> None:
    """Of a round in which nobody is new."""
    more = {"method": {"tasks": 3, "choice": "clients"}} if method == "fltac" else {}
    config = tiny_files(tmp_path, method, secure_aggregation=True, **more)
    expected, last = plan(config), journal(run(config, directory=tmp_path / "run"))[-1]
    assert {int(c): (b["up"], b["down"]) for c, b in last["client_bytes"].items()} == {
        c: (expected.up[c], expected.down[c]) for c in expected.up
    }
