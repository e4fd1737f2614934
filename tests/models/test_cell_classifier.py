"""The classifier on cut-outs: geometry you can check by eye, and that it learns from what surrounds a cell."""

import numpy as np
import pytest
import torch

from cellkit.models import cell_classifier as classifier

SIZE = classifier.SIZE_PX


def picture(shape=(120, 140)):
    return np.zeros((*shape, 3), np.float32)


def test_a_cut_out_is_the_square_around_the_centre():
    image = picture()
    image[50, 60] = 1, 2, 3
    cut = classifier.cut_out(
        image, (60 + 0.5 + 0.5, 50 + 0.5 + 0.5)
    )  # the corner of four pixels is the middle of the square
    assert cut.shape == (3, SIZE, SIZE)
    assert cut[:, SIZE // 2 - 1, SIZE // 2 - 1].tolist() == [1, 2, 3] and np.count_nonzero(cut) == 3


def test_outside_the_image_is_nothing():
    cut = classifier.cut_out(picture() + 1, (0, 0))
    assert (cut[:, : SIZE // 2 - 1] == 0).all() and (cut[:, SIZE // 2 :, SIZE // 2 :] == 1).all()


def test_random_cut_outs_follow_the_seed_and_keep_the_centre():
    image = picture()
    image[55:66, 65:76] = 1
    first, again = (classifier.cut_out(image, (70, 60), np.random.default_rng(1)) for _ in range(2))
    assert np.array_equal(first, again)
    assert first[0, SIZE // 2, SIZE // 2] > 0.3
    assert not np.array_equal(first, classifier.cut_out(image, (70, 60), np.random.default_rng(2)))


def test_no_box_no_class():
    network = classifier.CellClassifier(2).eval()
    assert classifier.classify(network, np.zeros((3, 50, 50), np.float32), np.zeros((0, 4))).tolist() == []


def test_classes_do_not_depend_on_the_chunk(monkeypatch):
    torch.manual_seed(0)
    network = classifier.CellClassifier(3).eval()
    rng = np.random.default_rng(0)
    planes = rng.random((3, 200, 200), np.float32)
    boxes = rng.uniform(0, 150, (9, 2)).repeat(2, axis=1)[:, [0, 2, 1, 3]] + [0, 0, 30, 30]
    whole = classifier.classify(network, planes, boxes)
    monkeypatch.setattr(classifier, "CHUNK", 2)
    assert classifier.classify(network, planes, boxes).tolist() == whole.tolist() and set(whole) <= {1, 2, 3}


def items():
    """Two images of equal cells; those of class 2 stand in green surroundings; the third cell's class is unknown."""
    made = []
    for class_id in (1, 2):
        planes, labels = np.zeros((3, 160, 160), np.float32), np.zeros((160, 160), np.int32)
        for k, (y, x) in enumerate(((30, 30), (110, 110), (30, 110)), start=1):
            labels[y : y + 24, x : x + 24] = k
        planes[2, labels > 0] = 1
        planes[1, labels == 0] = class_id - 1
        made.append((planes, labels, np.array([0, class_id, class_id, 0])))
    return made


def test_learns_what_surrounds_a_cell():
    torch.manual_seed(0)
    network = classifier.CellClassifier(2)
    loss_of = classifier.ClassLoss(network, items())
    assert [len(rows) for rows in loss_of.of_class] == [2, 2]
    optimizer, rng = torch.optim.AdamW(network.parameters(), lr=3e-3), np.random.default_rng(0)
    losses = []
    for _ in range(25):
        optimizer.zero_grad()
        losses.append(loss_of(rng))
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < 0.7 * losses[0]
    network.eval()
    for planes, _, class_of in items():
        found = classifier.classify(network, planes, np.array([[30.0, 30, 54, 54], [110, 110, 134, 134]]))
        assert found.tolist() == class_of[1:3].tolist()


def test_without_a_known_class_there_is_nothing_to_learn():
    made = [(planes, labels, np.zeros(4, int)) for planes, labels, _ in items()]
    loss = classifier.ClassLoss(classifier.CellClassifier(2), made)(np.random.default_rng(0))
    assert float(loss) == pytest.approx(0) and not loss.requires_grad
