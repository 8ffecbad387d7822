"""What counts as inside: signs of distances, occupancies above the level of their field."""

import pytest
import torch

from pipeline.evaluate.inside import level_of, signed_values
from pipeline.evaluate.metrics import inside_of


def test_probabilities_and_logits_are_cut_at_the_same_place():
    logits = torch.linspace(-4, 4, 81)
    for level in (0.2, 0.5, 0.9):
        by_logits = inside_of({"occupancy": logits.sigmoid(), "logits": logits}, level)
        by_probability = inside_of({"occupancy": logits.sigmoid()}, level)
        assert (by_logits == by_probability).all()
        assert by_logits.sum() == (logits.sigmoid() > level).sum()
    assert inside_of({"sdf": torch.tensor([-0.1, 0.1])}, 0.9).tolist() == [True, False]


def test_values_on_logits_are_even_where_probabilities_saturate():
    logits = torch.tensor([20.0, 40.0])
    assert signed_values({"occupancy": logits.sigmoid(), "logits": logits}).diff().item() == -20


def test_the_level_is_the_fields_and_only_of_occupancies():
    assert level_of({"quantity": "occupancy", "level": 0.2}) == 0.2
    assert level_of({"quantity": "sdf", "level": 0.0}) == 0.5
    with pytest.raises(ValueError, match=r"'color'.*needs 'sdf' or 'occupancy'"):
        inside_of({"color": torch.zeros(2, 3)})
