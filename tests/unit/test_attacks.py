"""What each attack sends, by hand or by a plain statement of its source."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import norm
from torch import Tensor

from strategies.attacks import (
    Knowledge,
    attack,
    collude,
    fang_krum,
    fang_trimmed_mean,
    foreign_class,
    free_rider,
    gaussian,
    inner_product_manipulation,
    little_is_enough,
    mimic,
    min_max,
    noise,
    replacement,
    sign_flip,
)
from strategies.attacks.little_is_enough import z_of
from strategies.attacks.mimic import watch, widest
from strategies.attacks.moments import seen_from, spread, squared_distances

THREE = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0], [7.0, 8.0, 9.0]], dtype=torch.float64)


def drawn(num: int, size: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(0, 1, (num, size)))


def test_the_closed_forms_by_hand() -> None:
    assert sign_flip(THREE, 2).tolist() == [[-4.0, -5.0, -6.0]] * 2
    assert sign_flip(THREE, 4, of="own").tolist() == (-THREE[[0, 1, 2, 0]]).tolist()
    assert inner_product_manipulation(THREE, 1, tau=0.5).tolist() == [[-2.0, -2.5, -3.0]]
    assert little_is_enough(THREE, 1, z=1.5).tolist() == [[8.5, 9.5, 10.5]]
    assert little_is_enough(THREE, 1, z=-1.5).tolist() == [[-0.5, 0.5, 1.5]]
    assert little_is_enough(THREE, 1, z=1.0, correction=0).tolist() == (THREE[1:2] + 6**0.5).tolist()
    assert mimic(THREE, 2, target=1).tolist() == [[4.0, 5.0, 6.0]] * 2
    assert collude(THREE, 1).tolist() == [[4.0, 5.0, 6.0]]
    assert replacement(THREE[:1], 1, boost=10.0).tolist() == [[10.0, 20.0, 30.0]]


def test_directions_are_seen_from_what_was_received() -> None:
    received = torch.tensor([4.0, 4.0, 4.0], dtype=torch.float64)
    assert sign_flip(THREE, 1, received=received).tolist() == [[4.0, 3.0, 2.0]]
    assert inner_product_manipulation(THREE, 1, tau=2.0, received=received).tolist() == [[4.0, 2.0, 0.0]]


@pytest.mark.parametrize(("num_total", "num_byzantine"), [(50, 24), (50, 12), (50, 5), (25, 11), (7, 2), (4, 1)])
def test_the_papers_z_leaves_as_many_honest_vectors_further_out_as_a_majority_needs(
    num_total: int, num_byzantine: int
) -> None:
    z = z_of(num_total, num_byzantine)
    supporters = num_total // 2 + 1 - num_byzantine
    honest = num_total - num_byzantine
    assert honest * norm.sf(z) == pytest.approx(supporters)
    assert z == pytest.approx(norm.ppf((honest - supporters) / honest))


def test_the_papers_z_for_50_workers_24_of_them_corrupt() -> None:
    """The example of the paper's section 3: s = 2, and the table value of 0.923."""
    assert z_of(50, 24) == pytest.approx(1.43, abs=0.005)


@pytest.mark.parametrize(("num_total", "num_byzantine"), [(2, 1), (10, 6), (34, 24)])
def test_the_papers_z_is_refused_without_an_honest_majority(num_total: int, num_byzantine: int) -> None:
    with pytest.raises(ValueError, match=f"n={num_total} and f={num_byzantine}: give z"):
        z_of(num_total, num_byzantine)


def test_z_counts_all_who_send_when_attackers_see_only_themselves() -> None:
    own = drawn(4, 10)
    partial = attack("little_is_enough", z="paper").apply(own, Knowledge(4, num_total=50))
    assert torch.equal(partial, little_is_enough(own, 4, z=z_of(50, 4)))


def test_gaussian_attackers_draw_apart_unless_they_share() -> None:
    apart, shared = (gaussian(torch.zeros(1, 50_000), 2, mean=0.1, std=0.1, shared=one) for one in (False, True))
    assert torch.equal(shared[0], shared[1]) and not torch.equal(apart[0], apart[1])
    assert apart.mean().item() == pytest.approx(0.1, abs=0.002) and apart.std().item() == pytest.approx(0.1, abs=0.002)


def test_min_max_with_one_perturbation_in_the_plane() -> None:
    """Vectors at the ends of two unit segments: the largest squared distance is 4, along x from the mean (2, 0)."""
    honest = torch.tensor([[1.0, 0.0], [3.0, 0.0], [2.0, 1.0], [2.0, -1.0]], dtype=torch.float64)
    assert min_max(honest, 1, "unit").tolist() == [[1.0, 0.0]]  # from (3, 0) it is 2 away


def test_a_large_common_part_does_not_cost_min_max_its_precision() -> None:
    """In single precision a common part of 1000 leaves nothing of distances of 0.1 that are read off its square."""
    honest = 0.1 * drawn(6, 50)
    common, alone = 1000.0 + honest.float(), honest
    moved = (min_max(common, 1) - common.mean(0)).double()
    torch.testing.assert_close(moved, min_max(alone, 1) - alone.mean(0), rtol=1e-2, atol=1e-3)


def test_a_mean_of_zero_gives_min_max_no_way_to_go() -> None:
    honest = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    assert min_max(honest, 2, "unit").tolist() == min_max(honest, 2, "sign").tolist() == [[0.0, 0.0]] * 2


def test_mimic_without_a_memory_takes_the_row_furthest_along_the_direction_of_largest_variance() -> None:
    honest = drawn(9, 30) + 100.0
    honest[:, 3] += torch.tensor([0.0, 5.0, -5.0, 0, 0, 40.0, 0, 0, 5.0])
    centred = (honest - honest.mean(0)).numpy()
    first = np.linalg.svd(centred)[2][0]
    assert widest(honest) == int(np.abs(centred @ first).argmax()) == 5
    assert torch.equal(mimic(honest, 2, "spread"), honest[[5, 5]])


def test_mimic_warms_up_as_the_authors_do_and_then_keeps_to_one_participant() -> None:
    """The warm-up of the paper once more, in numpy, over rounds of participants with directions of their own."""
    num, size, warm_up = 6, 15, 4
    own = np.random.default_rng(1).normal(0, 3, (num, size))
    rounds = [own + np.random.default_rng(10 + t).normal(0, 1, (num, size)) for t in range(7)]
    spread_out = attack("mimic", target="spread", warm_up=warm_up)
    memory, mu, z, targets = {}, np.zeros(size), np.zeros(size), []
    for t, x in enumerate(rounds):
        memory = spread_out.watch(memory, torch.from_numpy(x), Knowledge(2, seed=3))
        if t == 0:
            mu = x.mean(0)
            z = watch({}, torch.from_numpy(x), seed=3)["direction"].numpy()  # its start is drawn
        elif t < warm_up:
            mu = t / (1 + t) * mu + x.mean(0) / (1 + t)
            step = sum(((row - mu) @ z) * (row - mu) for row in x)
            z = t / (1 + t) * z + step / np.linalg.norm(step) / (1 + t)
            z /= np.linalg.norm(z)
        if t < warm_up:
            targets.append(int((x @ z).argmax()))
        np.testing.assert_allclose(memory["direction"].numpy(), z, atol=1e-12)
        sent = spread_out.apply(torch.from_numpy(x), Knowledge(2, memory=memory)).numpy()
        assert np.array_equal(sent, x[[targets[-1]] * 2])
    assert int(memory["num_rounds"]) == warm_up
    first = np.linalg.svd(own - own.mean(0))[2][0]
    assert abs(first @ z) > 0.8, "the warm-up finds the direction in which participants differ"


def test_partial_knowledge_of_krum_adds_copies_until_they_are_chosen() -> None:
    """Krum among the attackers' own vectors and q copies, written out: q grows until halving finds a factor."""
    grown = set()
    for seed in range(20):
        x = 0.3 * drawn(6, 12, seed).numpy() + (0.02 if seed % 2 else 1.0)
        signs = np.where(x.mean(0) < 0, -1.0, 1.0)
        squares = ((x[:, None] - x[None]) ** 2).sum(-1)
        factor = 0.0
        for num_copies in range(1, 7):
            factor = np.sqrt((x**2).sum(1).max() / 12)
            if 6 - num_copies - 1 > 0:
                factor += np.sqrt(np.sort(squares, 1)[:, 1:5].sum(1).min() / ((6 - num_copies - 1) * 12))
            while factor >= 1e-5:
                models = np.concatenate([x, np.tile(-factor * signs, (num_copies, 1))])
                table = ((models[:, None] - models[None]) ** 2).sum(-1)
                if np.argmin(np.sort(table, 1)[:, 1:5].sum(1)) >= 6:
                    break
                factor /= 2
            if factor >= 1e-5:
                grown.add(num_copies)
                break
        crafted = fang_krum(torch.from_numpy(x), 6, knowledge="partial").numpy()
        np.testing.assert_allclose(crafted, np.tile(-factor * signs, (6, 1)), rtol=1e-9)
    assert {1, 2} <= grown, "some need one copy and some more"


def test_a_tie_with_an_honest_vector_does_not_count_as_chosen_by_krum() -> None:
    crafted = fang_krum(torch.ones(1, 4), 1)  # two vectors are each as far from the other
    assert -1e-5 < float(crafted.min()) < 0


@pytest.mark.parametrize("variant", ["paper", "bristle"])
def test_fang_krum_sends_what_was_received_where_squares_overflow(variant: str) -> None:
    received = torch.randn(4)
    crafted = fang_krum(drawn(5, 4).float() * 1e25, 3, variant=variant, received=received)  # it once halved infinity
    assert torch.equal(crafted, received.expand(3, 4))


def test_fang_krum_moves_all_but_the_first_within_the_radius() -> None:
    honest = drawn(9, 40)
    crafted = fang_krum(honest, 5, radius=0.01)
    assert torch.equal(crafted[0], fang_krum(honest, 1 + 4)[0])
    distances = torch.linalg.vector_norm(crafted[1:] - crafted[0], dim=1)
    assert (distances > 0).all() and (distances <= 0.01).all() and distances.unique().numel() == 4


def bristles_fang_krum(models: np.ndarray, old: np.ndarray, num_attackers: int) -> np.ndarray:
    """The attack of Bristle's authors, from its description: row 0 is the victim's own model."""
    gradient, others = old - models[0], models[1:]
    signs = np.where(gradient < 0, -1.0, 1.0)
    size, m = models.shape[1], len(others) + num_attackers
    distance = np.linalg.norm
    nearest = min(sum(distance(a - b) for b in others) for a in others)
    lam = nearest / ((m - 2 * num_attackers - 1) * np.sqrt(size)) + max(distance(a - old) for a in others) / np.sqrt(
        size
    )
    while lam >= 1e-5:
        crafted = old - lam * signs
        everybody = np.concatenate([models, np.tile(crafted, (num_attackers, 1))])
        table = np.linalg.norm(everybody[:, None] - everybody[None], axis=-1)
        scores = np.sort(table, 1)[:, : len(everybody) - 2 - 2].sum(1)  # itself and n-b-3 others, b=2
        if scores.argmin() >= len(models):
            return old if crafted.min() < -10 or crafted.max() > 10 else crafted
        lam /= 2
    return old - lam * signs


@pytest.mark.parametrize("scale", [0.1, 1.0, 8.0])
def test_bristles_fang_krum_is_its_authors(scale: float) -> None:
    for seed in range(6):
        models, old = scale * drawn(9, 20, seed), scale * drawn(1, 20, 100 + seed)[0]
        crafted = fang_krum(models, 3, variant="bristle", received=old).numpy()
        np.testing.assert_allclose(
            crafted, np.tile(bristles_fang_krum(models.numpy(), old.numpy(), 3), (3, 1)), atol=1e-9
        )


def test_bristles_fang_attacks_send_the_old_model_where_theirs_send_nothing_or_too_much() -> None:
    models, old = drawn(3, 8), drawn(1, 8, 5)[0]
    for one in (fang_krum, fang_trimmed_mean):
        assert torch.equal(one(models, 2, variant="bristle", received=old), old.repeat(2, 1))
    far = 30 * drawn(9, 8)
    assert torch.equal(fang_krum(far, 8, variant="bristle", received=old), old.repeat(8, 1))


def test_bristles_fang_trimmed_mean_keeps_to_its_authors_intervals() -> None:
    scale = torch.tensor([1e-6, 1.0, 30.0, 300.0], dtype=torch.float64).repeat_interleave(50)
    models, old = drawn(8, 200) * scale + drawn(1, 200, 7) * scale, drawn(1, 200, 8)[0] * scale
    crafted = fang_trimmed_mean(models, 40, variant="bristle", received=old, seed=2).numpy()
    for j in range(200):
        own, most, least = float(models[0, j]), float(models[:, j].max()), float(models[:, j].min())
        if old[j] - own < 0:
            low = most if most > 0 else most - 1e-5
            high = (most if most > 100 else 2 * most + 1e-5) if most > 0 else most / 2
        else:
            least = max(least, -100.0)
            low, high = (least / 2, least + 1e-5) if least > 0 else (2 * least - 1e-5, least)
        assert low - 1e-9 <= crafted[:, j].min() and crafted[:, j].max() <= high + 1e-9
        assert high - low < 1e-9 or np.ptp(crafted[:, j]) > 0.6 * (high - low), "draws fill the interval"


@pytest.mark.parametrize("layout", ["columns", "rows"])
def test_noise_pushes_the_first_half_of_the_classes_down_and_the_others_up(layout: str) -> None:
    sent = attack("noise", num_classes=10, layout=layout).apply(torch.zeros(1, 800), Knowledge(3, seed=1))
    weights = sent.reshape(3, 80, 10) if layout == "columns" else sent.reshape(3, 10, 80).transpose(1, 2)
    assert (weights[..., :5] <= 0).all() and (weights[..., :5] > -0.5).all() and weights[..., :5].mean() < -0.23
    assert (weights[..., 5:] >= 0).all() and (weights[..., 5:] < 0.5).all() and weights[..., 5:].mean() > 0.23
    odd = noise(torch.zeros(1, 5), 4)
    assert (odd[:, :2] <= 0).all() and (odd[:, 2:] > 0).all()
    whole = noise(torch.zeros(1, 800), 2)
    assert (whole[:, :400] <= 0).all() and (whole[:, 400:] >= 0).all()


def test_an_output_layer_must_divide_among_its_classes() -> None:
    with pytest.raises(ValueError, match="801 coordinates are no output layer of 10 classes"):
        noise(torch.zeros(1, 801), 1, num_classes=10)


@pytest.mark.parametrize("layout", ["columns", "rows"])
def test_foreign_class_changes_foreign_columns_only(layout: str) -> None:
    honest = drawn(3, 20)
    as_matrix = (
        (lambda v: v.reshape(-1, 5, 4)) if layout == "columns" else (lambda v: v.reshape(-1, 4, 5).transpose(1, 2))
    )
    before = as_matrix(honest)
    for poison, factors in {"erase": [0.0, 0.0], "negate": [-2.0, -2.0]}.items():
        after = as_matrix(foreign_class(honest, 4, 4, [3, 1], poison, strength=2.0, layout=layout))  # type: ignore[arg-type]
        assert torch.equal(after[..., [0, 2]], before[[0, 1, 2, 0]][..., [0, 2]])
        assert torch.equal(after[..., [3, 1]], before[[0, 1, 2, 0]][..., [3, 1]] * torch.tensor(factors))
    turned = as_matrix(foreign_class(honest, 1, 4, [0, 2, 3], layout=layout))  # type: ignore[arg-type]
    assert torch.equal(turned[0], before[0][:, [2, 1, 3, 0]])
    mean = as_matrix(foreign_class(honest, 1, 4, [], elsewhere="mean", layout=layout))  # type: ignore[arg-type]
    assert torch.equal(mean[0], before.mean(0))


def test_rotated_foreign_columns_pass_the_victims_own_test_and_are_wrong_on_every_foreign_class() -> None:
    """A linear classifier of ten clusters: the victim owns the first four, and tests a peer on those alone."""
    rng = np.random.default_rng(0)
    centres = rng.normal(0, 1, (10, 40))
    labels = np.repeat(np.arange(10), 30)
    features = centres[labels] + rng.normal(0, 0.3, (300, 40))
    weights = np.linalg.lstsq(features, np.eye(10)[labels] - 0.1, rcond=None)[0]
    honest = torch.from_numpy(weights.reshape(1, -1))
    poisoned = foreign_class(honest, 1, 10, range(4, 10)).numpy().reshape(40, 10)
    right, wrong = ((features @ one).argmax(1) == labels for one in (weights, poisoned))
    own = labels < 4
    assert right.mean() > 0.98
    assert wrong[own].mean() == right[own].mean() and wrong[~own].mean() < 0.02


def test_free_riders_send_what_they_received_or_the_last_change_again() -> None:
    received, previous = drawn(1, 3, 1)[0], drawn(1, 3, 2)[0]
    assert torch.equal(free_rider(THREE, 2, received=received), received.repeat(2, 1))
    again = free_rider(THREE, 2, "previous", std=0.0, scale=0.5, received=received, previous=previous)
    assert torch.equal(again, (received + 0.5 * previous).repeat(2, 1))
    assert torch.equal(free_rider(THREE, 1, "previous", std=0.0), torch.zeros(1, 3, dtype=torch.float64))
    disguised = free_rider(drawn(1, 10_000), 2, "noise", std=0.01)
    assert disguised.std().item() == pytest.approx(0.01, rel=0.05) and not torch.equal(disguised[0], disguised[1])


def test_replacement_keeps_within_the_length_that_a_defence_allows() -> None:
    own, received = drawn(2, 50), drawn(1, 50, 4)[0]
    boosted = replacement(own, 2, boost=100.0, max_norm=3.0, received=received) - received
    torch.testing.assert_close(torch.linalg.vector_norm(boosted, dim=1), torch.full((2,), 3.0, dtype=torch.float64))
    torch.testing.assert_close(torch.nn.functional.cosine_similarity(boosted, own - received), torch.ones(2).double())
    short = replacement(own, 2, boost=2.0, max_norm=1e6, received=received)
    torch.testing.assert_close(short, received + 2.0 * (own - received))


def test_moments_of_more_coordinates_than_a_block_are_those_of_all() -> None:
    vectors, start, direction = drawn(5, 20_000), drawn(1, 20_000, 1)[0], drawn(1, 20_000, 2)[0]
    torch.testing.assert_close(spread(vectors), vectors.std(0))
    torch.testing.assert_close(squared_distances(vectors), torch.cdist(vectors, vectors).square())
    squares, along = seen_from(vectors, start, direction)
    torch.testing.assert_close(squares, (vectors - start).square().sum(1))
    torch.testing.assert_close(along, (vectors - start) @ direction)
