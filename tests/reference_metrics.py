"""The metrics again, written as loops over pixels, windows and classes straight from their definitions."""

import math


def _pixels(array):
    return [int(value) for value in array.ravel()]


def iou_per_class(predictions, targets, num_classes, ignore=255):
    """IoU of every class over a list of frames; None for a class without ground truth."""
    scores = []
    for label in range(num_classes):
        both = either = truth = 0
        for prediction, target in zip(predictions, targets, strict=True):
            for p, t in zip(_pixels(prediction), _pixels(target), strict=True):
                if t == ignore:
                    continue
                truth += t == label
                both += t == label and p == label
                either += t == label or p == label
        scores.append(both / either if truth else None)
    return scores


def miou(predictions, targets, num_classes, ignore=255):
    scores = [s for s in iou_per_class(predictions, targets, num_classes, ignore) if s is not None]
    return sum(scores) / len(scores) if scores else math.nan


def wiou(predictions, targets, num_classes, ignore=255):
    scores = iou_per_class(predictions, targets, num_classes, ignore)
    counts = [sum(_pixels(target).count(label) for target in targets) for label in range(num_classes)]
    counts = [0 if label == ignore else count for label, count in enumerate(counts)]
    if not sum(counts):
        return math.nan
    return sum(count * score for count, score in zip(counts, scores, strict=True) if count) / sum(counts)


def window_scores(targets, predictions, n, correct=False, ignore=255):
    """Score of every defined window of one video (T, H, W)."""
    frames, height, width = targets.shape
    scores = []
    for first in range(frames - n):
        same_truth = same_both = 0
        for y in range(height):
            for x in range(width):
                truth = {int(targets[t, y, x]) for t in range(first, first + n)}
                predicted = {int(predictions[t, y, x]) for t in range(first, first + n)}
                if len(truth) > 1 or (correct and truth == {ignore}):
                    continue
                same_truth += 1
                same_both += len(predicted) == 1 and (not correct or predicted == truth)
        if same_truth:
            scores.append(same_both / same_truth)
    return scores


def video_consistency(videos, n, correct=False, ignore=255):
    """Mean over the windows of all videos, each a pair (targets, predictions)."""
    scores = []
    for targets, predictions in videos:
        scores += window_scores(targets, predictions, n, correct, ignore)
    return sum(scores) / len(scores) if scores else math.nan


def region_similarity(prediction, target):
    both = either = 0
    for p, t in zip(_pixels(prediction), _pixels(target), strict=True):
        both += p != 0 and t != 0
        either += p != 0 or t != 0
    return both / either if either else 1.0


def region_similarity_of_clips(clips, interval):
    """Clips are lists of (prediction, target); every interval-th frame is a key frame."""
    means = []
    for clip in clips:
        scores = [region_similarity(p, t) for index, (p, t) in enumerate(clip) if index % interval]
        if scores:
            means.append(sum(scores) / len(scores))
    return sum(means) / len(means) if means else math.nan


def flicker(labels, before, backward, forward):
    """Changed and compared pixels of one frame, from the two flows as arrays (H, W, 2) in pixels, order (x, y)."""
    height, width = labels.shape
    changed = compared = 0
    for y in range(height):
        for x in range(width):
            bx, by = (float(value) for value in backward[y, x])
            column, row = round(x + bx), round(y + by)
            if not (0 <= column < width and 0 <= row < height):
                continue
            fx, fy = _bilinear(forward, x + bx, y + by)
            if math.hypot(bx + fx, by + fy) < 1:
                compared += 1
                changed += int(labels[y, x]) != int(before[row, column])
    return changed, compared


def _bilinear(flow, x, y):
    height, width = flow.shape[:2]
    left, top = math.floor(x), math.floor(y)
    total = [0.0, 0.0]
    for dy in (0, 1):
        for dx in (0, 1):
            weight = (1 - abs(x - left - dx)) * (1 - abs(y - top - dy))
            value = flow[min(max(top + dy, 0), height - 1), min(max(left + dx, 0), width - 1)]
            total = [total[0] + weight * float(value[0]), total[1] + weight * float(value[1])]
    return total
