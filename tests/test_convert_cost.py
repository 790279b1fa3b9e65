"""Costs are the published ones, and follow from the counting rule."""

import pytest
import torch
import torch.nn.functional as F

from mpvss.convert.cost import cost, count_gmac

# Of the paper: multiply-adds (1e9) of a segmentor's frame and of a frame on average at interval 5, at 480x853 with 124
# classes; parameters (1e6) of the segmentor and of everything.
PUBLISHED = {
    "r50": (110.6, 38.9, 44.0, 84.1),
    "r101": (141.3, 45.1, 63.0, 103.1),
    "swin-t": (114.4, 39.7, 47.4, 87.5),
    "swin-s": (152.2, 47.3, 68.9, 109.0),
    "swin-b": (223.5, 61.5, 107.1, 147.0),
    "swin-l": (402.7, 97.3, 215.1, 255.4),
}


@pytest.mark.parametrize("arch", PUBLISHED)
def test_cost_and_size_are_the_published_ones(arch):
    found = cost(arch, size=(480, 853), interval=5, num_classes=124).to_dict()
    measured = (
        found["gmac"]["key"],
        found["gmac"]["per_frame"],
        found["params_m"]["segmentor"],
        found["params_m"]["total"],
    )
    # 5 % is promised; every figure is within 1 %.
    assert measured == pytest.approx(PUBLISHED[arch], rel=0.01)
    assert found["params_m"]["total"] == found["params_m"]["segmentor"] + found["params_m"]["motion"]
    key, other = found["gmac"]["key"], found["gmac"]["non_key"]
    assert found["gmac"]["per_frame"] == pytest.approx((key + 4 * other) / 5)


def test_every_frame_pays_for_decoding_all_queries_and_classes():
    few = cost("r50", size=(50, 70), num_classes=19, interval=1).gmac
    assert few["per_frame"] == few["key"]
    many = cost("r50", size=(50, 70), num_classes=124, interval=3).gmac
    assert many["per_frame"] == pytest.approx((many["key"] + 2 * many["non_key"]) / 3)
    decoding = 100 * (124 - 19) * 50 * 70 / 1e9
    assert many["non_key"] - few["non_key"] == pytest.approx(decoding)
    # The key frame's class logits, after each of ten layers, are the rest.
    assert many["key"] - few["key"] == pytest.approx(decoding + 10 * 100 * 256 * (124 - 19) / 1e9)


def test_the_counting_rule():
    with torch.device("meta"):
        image = torch.empty(1, 3, 20, 30)
        weight = torch.empty(5, 3, 3, 3)
        grid = torch.empty(1, 8, 9, 2)
        rows = torch.empty(1, 2, 7, 16)
        assert count_gmac(lambda: F.conv2d(image, weight, padding=1)) == 5 * 3 * 9 * 20 * 30 / 1e9
        assert count_gmac(lambda: F.grid_sample(image, grid, align_corners=False)) == 4 * 3 * 8 * 9 / 1e9
        assert count_gmac(lambda: F.interpolate(image, size=(10, 12), mode="bilinear")) == 4 * 3 * 10 * 12 / 1e9
        with torch.inference_mode():
            assert count_gmac(lambda: F.interpolate(image, size=(10, 12), mode="bilinear")) == 4 * 3 * 10 * 12 / 1e9
        assert count_gmac(lambda: F.scaled_dot_product_attention(rows, rows, rows)) == 2 * 2 * 7 * 7 * 16 / 1e9
        assert count_gmac(lambda: F.layer_norm(image, (30,)) + image.relu()) == 0


def test_sizes_and_intervals_below_one_are_refused():
    with pytest.raises(ValueError, match="at least 1, got"):
        cost("r50", interval=0)
    with pytest.raises(ValueError, match="at least 1, got"):
        cost("r50", size=(0, 853))
