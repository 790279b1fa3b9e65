import json
import math

import cv2
import numpy as np
import pytest

import reference_metrics as reference
from helpers import moving_frames
from mpvss.metrics import (
    ConfusionMatrix,
    Flicker,
    Matcher,
    MiouByDistance,
    RegionSimilarity,
    VideoConsistency,
    region_similarity,
    video_consistency,
)


def random_video(seed, frames, num_classes=4, size=(5, 7), void=0.1, change=0.15, dtype=np.uint8):
    """Targets with void pixels and predictions with ids outside the classes, both changing slowly."""
    rng = np.random.default_rng(seed)

    def slowly(ids, share):
        frame = rng.integers(0, ids, size)
        video = []
        for _ in range(frames):
            frame = np.where(rng.random(size) < share, rng.integers(0, ids, size), frame)
            video.append(frame)
        return np.array(video).reshape(frames, *size)

    targets = slowly(num_classes, change)
    predictions = np.where(rng.random(targets.shape) < 0.6, targets, slowly(num_classes + 2, change))
    targets = np.where(rng.random(size) < void, 255, targets)
    return targets.astype(dtype), predictions.astype(dtype)


def correct_video_consistency(targets, predictions, n, ignore=255):
    return video_consistency(targets, predictions, n, correct=True, ignore=ignore)


def through_json(metric):
    return type(metric).from_state(json.loads(json.dumps(metric.state())))


def same(value, expected):
    return value == pytest.approx(expected, rel=1e-12, abs=0, nan_ok=True)


# Confusion matrix


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16, np.int64, np.uint64])
def test_confusion_matrix_equals_loops(seed, dtype):
    # Two classes more than the targets hold: absent ones, one of which is predicted.
    targets, predictions = random_video(seed, frames=3, dtype=dtype)
    metric = ConfusionMatrix(6)
    for prediction, target in zip(predictions, targets, strict=True):
        metric.update(prediction, target)
    expected = reference.iou_per_class(predictions, targets, 6)
    assert same(metric.iou, np.array([math.nan if score is None else score for score in expected]))
    assert metric.iou.dtype == np.float64
    assert same(metric.miou, reference.miou(predictions, targets, 6))
    assert same(metric.wiou, reference.wiou(predictions, targets, 6))


def test_predictions_outside_the_classes_are_in_no_column():
    metric = ConfusionMatrix(2)
    metric.update(np.array([0, 2, 255, -1, 1]), np.array([0, 0, 0, 1, 255]))
    assert metric.matrix.tolist() == [[1, 0], [0, 0]]
    assert metric.pixels.tolist() == [3, 1]
    assert same(metric.iou, [1 / 3, 0])


def test_a_predicted_class_without_ground_truth_only_hurts_the_others():
    metric = ConfusionMatrix(3)
    metric.update(np.array([0, 1, 1, 2]), np.array([0, 0, 1, 1]))
    assert same(metric.iou, [1 / 2, 1 / 3, math.nan])
    assert same(metric.miou, (1 / 2 + 1 / 3) / 2)


def test_no_ground_truth_is_nan():
    metric = ConfusionMatrix(3)
    metric.update(np.zeros((2, 2), np.uint8), np.full((2, 2), 255, np.uint8))
    metric.update(np.zeros((0, 2), np.uint8), np.zeros((0, 2), np.uint8))
    assert np.isnan([*metric.iou, metric.miou, metric.wiou]).all()


def test_a_perfect_prediction_scores_one():
    labels = np.arange(12, dtype=np.uint16).reshape(3, 4) * 100
    metric = ConfusionMatrix(1200, ignore=65535)
    metric.update(labels, labels)
    assert metric.miou == metric.wiou == 1


def test_frames_together_equal_frames_apart():
    targets, predictions = random_video(0, frames=4)
    together, apart = ConfusionMatrix(4), ConfusionMatrix(4)
    together.update(predictions, targets)
    for prediction, target in zip(predictions, targets, strict=True):
        apart.update(prediction, target)
    assert (together.matrix == apart.matrix).all()


@pytest.mark.parametrize("value", [-1, 3, 254])
def test_a_target_outside_the_classes_is_an_error_and_counts_nothing(value):
    metric = ConfusionMatrix(3)
    with pytest.raises(ValueError, match=rf"target holds {value}; expected classes 0\.\.2, or 255"):
        metric.update(np.array([0, 0]), np.array([0, value]))
    assert metric.pixels.sum() == 0


def test_confusion_matrix_misuse():
    with pytest.raises(ValueError, match="at least 1"):
        ConfusionMatrix(0)
    with pytest.raises(ValueError, match=r"one shape, got \(2, 3\) and \(3, 2\)"):
        ConfusionMatrix(2).update(np.zeros((2, 3), int), np.zeros((3, 2), int))
    with pytest.raises(TypeError):
        ConfusionMatrix(2).update(np.zeros(3), np.zeros(3, int))


# Merging and states


def fill_confusion(metric, seed):
    targets, predictions = random_video(seed, 2)
    metric.update(predictions, targets)


def fill_distance(metric, seed):
    for distance, (target, prediction) in enumerate(zip(*random_video(seed, 3), strict=True)):
        metric.update(prediction, target, distance)


def fill_consistency(metric, seed):
    for target, prediction in zip(*random_video(seed, 6), strict=True):
        metric.update(target, prediction)
    metric.end_video()


def fill_region(metric, seed):
    for index, (target, prediction) in enumerate(zip(*random_video(seed, 5, num_classes=2, void=0), strict=True)):
        metric.update(prediction, target, is_key=index == 0)
    metric.end_video()


def fill_flicker(metric, seed):
    rng = np.random.default_rng(seed)
    video = Flicker()
    for _ in range(2):
        video.update(rng.integers(0, 255, (20, 24, 3), dtype=np.uint8), rng.integers(0, 2, (20, 24)))
    metric.merge(video)


METRICS = [
    (lambda: ConfusionMatrix(5), fill_confusion, lambda m: m.miou),
    (lambda: MiouByDistance(5, 3), fill_distance, lambda m: m.miou),
    (lambda: VideoConsistency(3), fill_consistency, lambda m: m.value),
    (lambda: VideoConsistency(3, correct=True), fill_consistency, lambda m: m.value),
    (RegionSimilarity, fill_region, lambda m: m.value),
    (Flicker, fill_flicker, lambda m: m.value),
]


@pytest.mark.parametrize(("make", "fill", "value"), METRICS)
def test_resumed_and_merged_equal_uninterrupted(make, fill, value):
    whole = make()
    parts = [make(), make()]
    for seed in range(4):
        fill(whole, seed)
        fill(parts[seed // 2], seed)
    resumed = through_json(parts[0])
    for seed in (2, 3):
        fill(resumed, seed)
    assert resumed.state() == whole.state()
    total = through_json(parts[0])
    total.merge(through_json(parts[1]))
    parts[0].merge(parts[1])
    assert value(total) == value(parts[0]) == pytest.approx(value(whole), rel=1e-12)


@pytest.mark.parametrize(("make", "fill", "value"), METRICS)
def test_merging_an_empty_metric_changes_nothing_and_leaves_it_empty(make, fill, value):
    metric, empty = make(), make()
    fill(metric, 0)
    before = metric.state()
    metric.merge(empty)
    assert metric.state() == before
    assert empty.state() == make().state()
    empty.merge(metric)
    assert empty.state() == metric.state() == before


def test_metrics_of_different_settings_do_not_merge():
    with pytest.raises(ValueError, match="one kind and settings"):
        ConfusionMatrix(3).merge(ConfusionMatrix(4))
    with pytest.raises(ValueError, match="one kind and settings"):
        VideoConsistency(8).merge(VideoConsistency(8, correct=True))


def test_no_state_or_merge_in_the_middle_of_a_video():
    frame = np.zeros((2, 2), int)
    consistency, region = VideoConsistency(2), RegionSimilarity()
    consistency.update(frame, frame)
    region.update(frame, frame, is_key=False)
    for metric, empty in ((consistency, VideoConsistency(2)), (region, RegionSimilarity())):
        with pytest.raises(ValueError, match=r"end_video\(\)"):
            metric.state()
        with pytest.raises(ValueError, match=r"end_video\(\)"):
            empty.merge(metric)
        metric.end_video()
        metric.state()


@pytest.mark.parametrize(
    "change",
    [{"extra": 1}, {"_counts": None}, {"_counts": {"index": [99], "count": [1]}}, {"_counts": {"index": [0]}}],
)
def test_a_foreign_state_is_an_error(change):
    with pytest.raises(ValueError, match="state of ConfusionMatrix"):
        ConfusionMatrix.from_state({**ConfusionMatrix(3).state(), **change})


# Video consistency


@pytest.mark.parametrize("correct", [False, True])
@pytest.mark.parametrize("n", [1, 2, 3, 8])
@pytest.mark.parametrize("seed", range(4))
def test_video_consistency_equals_loops(seed, n, correct):
    # Lengths around n: shorter, equal (no window), one more (one window), longer. The last video is all void.
    lengths = [max(n - 1, 1), n, n + 1, n + 5]
    videos = [random_video((seed, length), length, num_classes=3, change=0.1) for length in lengths]
    videos.append((np.full((n + 2, 3, 3), 255), np.zeros((n + 2, 3, 3), int)))
    metric = VideoConsistency(n, correct=correct)
    for targets, predictions in videos:
        for target, prediction in zip(targets, predictions, strict=True):
            metric.update(target, prediction)
        metric.end_video()
    assert same(metric.value, reference.video_consistency(videos, n, correct))
    assert metric.windows == sum(len(reference.window_scores(*video, n, correct)) for video in videos)
    for targets, predictions in videos:
        whole = correct_video_consistency if correct else video_consistency
        assert same(whole(targets, predictions, n), reference.video_consistency([(targets, predictions)], n, correct))


def test_windows_without_constant_ground_truth_are_undefined():
    targets = np.arange(6).reshape(6, 1, 1) + np.zeros((6, 2, 2), int)
    targets[4:] = 3  # the only windows with a constant pixel: frames 3..4, and the left-out 4..5
    predictions = np.zeros_like(targets)
    metric = VideoConsistency(2)
    for target, prediction in zip(targets, predictions, strict=True):
        metric.update(target, prediction)
    assert metric.windows == 1
    assert math.isnan(video_consistency(targets[:4], predictions[:4], 2))


def test_a_constant_prediction_is_consistent_but_not_correct():
    targets, _ = random_video(0, 12)
    constant = np.full_like(targets, 9)
    assert video_consistency(targets, constant, 3) == 1
    assert correct_video_consistency(targets, constant, 3) == 0
    assert correct_video_consistency(targets, targets, 3) == 1


def test_the_last_possible_window_is_left_out():
    targets = np.zeros((9, 1, 2), np.uint8)
    predictions = targets.copy()
    predictions[8] = 1  # changes only the last window
    assert video_consistency(targets, predictions, 8) == 1
    assert math.isnan(video_consistency(targets[:8], predictions[:8], 8))
    assert math.isnan(video_consistency(targets[:0], predictions[:0], 8))


def test_correct_consistency_takes_its_void_id():
    targets = np.zeros((4, 1, 2), np.uint8)
    targets[:, 0, 1] = 7
    predictions = np.zeros_like(targets)
    assert correct_video_consistency(targets, predictions, 2) == 0.5
    assert correct_video_consistency(targets, predictions, 2, ignore=7) == 1


def test_consistency_does_not_keep_the_callers_buffers():
    targets, predictions = random_video(3, 12)
    metric = VideoConsistency(3)
    target, prediction = np.empty_like(targets[0]), np.empty_like(predictions[0])
    for t, p in zip(targets, predictions, strict=True):
        target[:], prediction[:] = t, p
        metric.update(target, prediction)
    assert metric.value == video_consistency(targets, predictions, 3)


def test_consistency_misuse():
    frame = np.zeros((2, 3), int)
    with pytest.raises(ValueError, match="n must be at least 1"):
        VideoConsistency(0)
    metric = VideoConsistency(2)
    with pytest.raises(ValueError, match="one shape"):
        metric.update(frame, frame.T)
    metric.update(frame, frame)
    with pytest.raises(ValueError, match=r"got \(3, 2\) after \(2, 3\); call end_video"):
        metric.update(frame.T, frame.T)
    with pytest.raises(ValueError, match=r"\(T, H, W\)"):
        video_consistency(frame, frame, 2)
    with pytest.raises(TypeError):
        metric.update(frame.astype(float), frame)


# mIoU by distance


def test_miou_by_distance_is_one_confusion_matrix_each():
    targets, predictions = random_video(1, frames=10)
    metric = MiouByDistance(4, interval=4)
    for index in range(7):
        metric.update(predictions[index], targets[index], index % 3)
    for distance in range(3):
        frames = slice(distance, 7, 3)
        expected = reference.miou(predictions[frames], targets[frames], 4)
        assert same(metric.miou[distance], expected)
        assert same(metric.at(distance).wiou, reference.wiou(predictions[frames], targets[frames], 4))
    assert math.isnan(metric.miou[3])
    assert same(metric.mean, sum(metric.miou[:3]) / 3)
    assert math.isnan(MiouByDistance(4, 2).mean)


def test_miou_by_distance_misuse():
    metric = MiouByDistance(3, interval=2)
    for distance in (-1, 2):
        with pytest.raises(ValueError, match=rf"distance must be in 0\.\.1, got {distance}"):
            metric.update(np.zeros(1, int), np.zeros(1, int), distance)
        with pytest.raises(ValueError, match="distance must be"):
            metric.at(distance)
    with pytest.raises(ValueError, match="at least 1"):
        MiouByDistance(3, 0)


# Region similarity


def test_region_similarity_equals_loops():
    rng = np.random.default_rng(0)
    for share in (0, 0.2, 0.7, 1):
        prediction, target = rng.random((2, 6, 9)) < share
        assert same(region_similarity(prediction, target), reference.region_similarity(prediction, target))
        # 0/255 masks are the same masks.
        assert region_similarity(prediction * np.uint8(255), target) == region_similarity(prediction, target)
    assert region_similarity(np.zeros((2, 2), bool), np.zeros((2, 2), bool)) == 1
    assert region_similarity(np.zeros((2, 2), bool), np.ones((2, 2), bool)) == 0
    with pytest.raises(ValueError, match="one shape"):
        region_similarity(np.zeros((2, 3), bool), np.zeros((3, 2), bool))


def test_region_similarity_of_clips_equals_loops():
    interval = 3
    clips = []
    for seed, frames in enumerate((7, 4, 1)):  # the last holds only its key frame
        targets, predictions = random_video(seed, frames, num_classes=2, void=0)
        clips.append(list(zip(predictions, targets, strict=True)))
    metric = RegionSimilarity()
    for clip in clips:
        for index, (prediction, target) in enumerate(clip):
            score = metric.update(prediction, target, is_key=index % interval == 0)
            assert (score is None) == (index % interval == 0)
        metric.end_video()
        metric.end_video()
    assert metric.clips == 2
    assert same(metric.value, reference.region_similarity_of_clips(clips, interval))
    assert math.isnan(RegionSimilarity().value)


# Flicker


def texture(height, width, seed=0):
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return cv2.GaussianBlur(noise, (0, 0), 1.5)


def test_labels_that_move_with_the_picture_do_not_flicker():
    wide = texture(48, 80)
    labels = np.zeros((48, 80), np.uint8)
    labels[:, 30:50] = 3
    metric = Flicker()
    assert math.isnan(metric.update(wide[:, :64], labels[:, :64]))
    moved = metric.update(wide[:, 4:68], labels[:, 4:68])
    assert moved < 0.01
    held = Flicker()
    held.update(wide[:, :64], labels[:, :64])
    assert held.update(wide[:, 4:68], labels[:, :64]) > 0.05


def test_flicker_of_a_still_picture_is_the_share_of_changed_labels():
    picture = texture(32, 40)
    labels = np.zeros((32, 40), np.int32)
    changed = labels.copy()
    changed[:8] = 300
    metric = Flicker()
    assert math.isnan(metric.value)
    metric.update(picture, labels)
    assert metric.update(picture, labels) == 0
    assert metric.update(picture, changed) == 0.25
    assert metric.value == 0.125


def test_flicker_equals_loops():
    wide, labels = texture(40, 60, seed=1), np.random.default_rng(2).integers(0, 3, (40, 60))
    first, second = (wide[:, :50], labels[:, :50]), (wide[3:, 5:55], labels[3:, 5:55])
    first = (first[0][:37], first[1][:37])
    grey = [cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY) for picture, _ in (first, second)]
    dis = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    backward, forward = dis.calc(grey[1], grey[0], None), dis.calc(grey[0], grey[1], None)
    changed, compared = reference.flicker(second[1], first[1], backward, forward)
    assert 0 < compared < labels.size

    metric = Flicker()
    metric.update(*first)
    # OpenCV interpolates in steps of 1/32 pixel: a pixel or two may fall on the other side of the threshold.
    assert metric.update(*second) == pytest.approx(changed / compared, abs=0.005)


def test_a_video_has_one_size():
    metric = Flicker()
    metric.update(texture(24, 24), np.zeros((24, 24), np.uint8))
    with pytest.raises(ValueError, match="one Flicker for each video"):
        metric.update(texture(24, 24), np.zeros((20, 24), np.uint8))


def test_flicker_brings_the_picture_to_the_size_of_the_labels():
    metric = Flicker()
    labels = np.zeros((24, 32), np.uint8)
    metric.update(texture(48, 64), labels)
    assert metric.update(texture(48, 64), labels) == 0
    with pytest.raises(ValueError, match="at least 16x16"):
        Flicker().update(texture(12, 40), np.zeros((12, 40), np.uint8))


def test_one_flow_serves_several_label_maps():
    """Law: with shared matches each flicker is what it is alone."""
    random = np.random.default_rng(0)
    frames = [frame.rgb for frame in moving_frames(4, (40, 60))]
    maps = [[random.integers(0, 3, (40, 60)) for _ in frames] for _ in range(2)]
    matcher, shared, alone = Matcher(), (Flicker(), Flicker()), (Flicker(), Flicker())
    for number, rgb in enumerate(frames):
        matches = matcher.next(rgb, (40, 60))
        assert (matches is None) == (number == 0)
        for which in range(2):
            ours, own = (
                shared[which].compare(maps[which][number], matches),
                alone[which].update(rgb, maps[which][number]),
            )
            assert ours == own or number == 0
    assert [flicker.value for flicker in shared] == [flicker.value for flicker in alone]
    assert shared[0].value != shared[1].value > 0


@pytest.mark.parametrize("size", [(40, 56), (120, 160)])
def test_quick_matches_follow_what_moves(size):
    """Law: labels that move with the image do not flicker, those that stay behind do; images are copied."""
    height, width = size
    wide = cv2.GaussianBlur(texture(height, width + 12), (0, 0), 2)
    labels = np.zeros((height, width + 12), np.uint8)
    labels[:, width // 3 : width // 2] = 3
    matcher, moving, held = Matcher(quick=True), Flicker(), Flicker()
    buffer = wide[:, :width].copy()
    for step in range(4):
        buffer[:] = wide[:, 2 * step : 2 * step + width]
        matches = matcher.next(buffer, size)
        moving.compare(labels[:, 2 * step : 2 * step + width], matches)
        held.compare(labels[:, :width], matches)
    assert moving.value < 0.005
    assert held.value > 0.015
    assert matches is not None
    assert matches.consistent.mean() > 0.8
