import numpy as np
import pytest

from models.distillation.teachers import calibrated, temperature_of, weigh


def test_the_weights_of_each_sample_add_up_to_one() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 50, (4, 200))
    weights = weigh(logits, (rng.random(200) < 0.5).astype(float))
    assert weights.shape == (4, 200)
    np.testing.assert_allclose(weights.sum(0), 1)
    assert (weights >= 0).all()


def test_a_confident_wrong_teacher_counts_less_than_a_right_one() -> None:
    """And less than one that does not know; a nodule and none alike."""
    logits = np.array([[4.0, -4.0], [0.0, 0.0], [-4.0, 4.0]])
    right, unsure, wrong = weigh(logits, np.array([1.0, 0.0]))
    assert (right > unsure).all()
    assert (unsure > wrong).all()
    np.testing.assert_allclose(right[0], right[1])


def test_the_weight_differs_from_sample_to_sample() -> None:
    first, second = weigh(np.array([[3.0, -3.0], [-3.0, 3.0]]), np.array([1.0, 1.0]))
    assert first[0] > 0.9
    assert second[1] > 0.9


def test_the_one_that_stands_alone_counts_less() -> None:
    """Teachers that say the same count alike; a single one has the whole weight."""
    alike = np.tile([[3.0, -2.0, 0.1]], (3, 1))
    np.testing.assert_allclose(weigh(alike, np.array([1.0, 1.0, 0.0])), 1 / 3)
    assert weigh(np.array([[-7.0, 2.0]]), np.array([1.0, 0.0])).tolist() == [[1.0, 1.0]]
    logits = np.array([[2.0], [2.0], [-2.0]])
    weights = weigh(logits, np.array([1.0]), confidence=0, correct=0)
    assert weights[0] == weights[1] > weights[2]


def test_teachers_are_judged_and_calibrated_on_the_held_out_regions() -> None:
    """The second answers at random there: it is made quieter and has the larger loss."""
    rng = np.random.default_rng(0)
    label = (np.arange(60) % 2).astype(float)
    right = np.where(label > 0, 3.0, -3.0)
    good = calibrated(right, right, label)
    noisy = calibrated(right, rng.normal(0, 4, 60), label)
    assert good.temperature < 1 < noisy.temperature
    assert good.held_out_loss < noisy.held_out_loss
    np.testing.assert_allclose(noisy.logits * noisy.temperature, right)
    # regions that do not teach whether they hold a nodule do not count
    more = calibrated(right, np.append(right, 99.0), np.append(label, np.nan))
    assert more.temperature == good.temperature


def test_the_temperature_makes_a_loud_teacher_quiet() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, 5000)
    label = rng.random(5000) < 1 / (1 + np.exp(-logits))
    found = temperature_of(3 * np.where(label, logits, -logits), label)
    assert found == pytest.approx(3.0, rel=0.15)
