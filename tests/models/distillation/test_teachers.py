import numpy as np
import pytest

from models.distillation.teachers import entropy, mean_target, weigh, weighted_target
from models.runtime.detection import sigmoid


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


def test_entropy_is_in_bits() -> None:
    np.testing.assert_allclose(entropy(np.array([0.5, 0.0, 1.0])), [1, 0, 0], atol=1e-9)


def test_the_targets_lie_between_what_the_teachers_say() -> None:
    logits = np.array([[4.0], [0.0]])
    assert mean_target(logits, 1.0)[0] == pytest.approx((sigmoid(np.array(4.0)) + 0.5) / 2)
    weights = np.array([[0.75], [0.25]])
    sharp, soft = (weighted_target(logits, weights, t)[0] for t in (1.0, 4.0))
    assert sharp > soft > 0.5
    assert sharp == pytest.approx(0.75 * float(sigmoid(np.array(4.0))) + 0.125)
