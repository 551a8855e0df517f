"""Quality scores and landmarks of faces."""

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from adaptome.core.errors import DataError
from adaptome.data.faces.crops import POINTS, crop
from adaptome.data.faces.drawing import camera, person, pose, scene, stored, taken
from adaptome.data.faces.landmarks import Landmarks
from adaptome.data.faces.quality import CNNIQA, Scores, resolution, scale_of, sharpness
from adaptome.data.makers.people import reduced


def faces(times, count=12):
    rng = np.random.default_rng(0)
    return [
        Image.fromarray(stored(reduced(taken(scene(person(rng), pose(rng)), camera(rng), rng), times, rng))) for _ in range(count)
    ]  # fmt: skip


def test_sharpness_falls_with_the_size_that_a_picture_was_taken_at():
    means = [np.mean([sharpness(face) for face in faces(times)]) for times in (1, 2, 4)]
    assert means[0] > means[1] + 0.1 > means[2] + 0.2
    face = faces(1)[0]
    assert sharpness(face) == pytest.approx(
        sharpness(face.transpose(Image.Transpose.FLIP_LEFT_RIGHT)), abs=1e-2
    )
    assert resolution(face.resize((20, 50))) == 20


def test_scores_of_training_are_brought_around_a_half():
    scores = np.random.default_rng(0).normal(-3, 0.7, 500)
    factor, shift = scale_of(scores, spread=True)
    made = factor * scores + shift
    assert made.mean() == pytest.approx(0.5) and np.percentile(made, 95) - np.percentile(
        made, 5
    ) == pytest.approx(1)
    assert scale_of([0.2, 0.4], spread=False) == (1.0, pytest.approx(0.2))
    with pytest.raises(DataError, match="not all numbers"):
        scale_of([0.1, float("nan")], spread=False)


def test_a_table_of_scores_names_what_it_lacks(tmp_path):
    (tmp_path / "a.png").touch()
    (tmp_path / "scores.csv").write_text("file,score\na.png,0.25\nb.png 31\n")
    scores = Scores(tmp_path / "scores.csv")
    assert scores.of(tmp_path / "a.png") == 0.25
    (tmp_path / "spaced.csv").write_text("a b/c d.png,0.5\na  b.png 0.75\ne.png, 1, x\n")
    spaced = Scores(tmp_path / "spaced.csv")
    assert [spaced.of(name) for name in ("a b/c d.png", "a  b.png", "e.png")] == [0.5, 0.75, 1.0]
    with pytest.raises(DataError, match=r"ab.png: .*scores.csv has no score of it. Did you mean"):
        scores.of(tmp_path / "ab.png")
    (tmp_path / "scores.csv").write_text("a.png,0.25\nb.png,good\n")
    with pytest.raises(DataError, match="line 2: 'b.png,good'; expected a file's name and its score"):
        Scores(tmp_path / "scores.csv")


def test_cnn_iqa_takes_pictures_in_0_to_1_and_is_read_from_its_weights(tmp_path):
    torch.manual_seed(0)
    network = CNNIQA().eval()
    assert sum(p.numel() for p in network.parameters()) == 724_901
    save_file(network.state_dict(), tmp_path / "iqa.safetensors")
    again = CNNIQA.from_file(tmp_path / "iqa.safetensors")
    x = torch.rand(2, 3, 64, 40)
    torch.testing.assert_close(again(x), network(x))
    with pytest.raises(DataError, match="takes pictures in"):
        network(x * 2 - 1)
    assert isinstance(again.of(Image.new("RGB", (20, 40), "red")), float)
    save_file({"conv1.weight": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(DataError, match="does not hold CNN-IQA's weights"):
        CNNIQA.from_file(tmp_path / "other.safetensors")


def test_cnn_iqa_of_three_channels_judges_the_whole_picture(tmp_path):
    torch.manual_seed(0)
    network = CNNIQA(channels=3).eval()
    assert sum(p.numel() for p in network.parameters()) == 729_801
    save_file(network.state_dict(), tmp_path / "iqa.safetensors")
    x = torch.rand(2, 3, 64, 40)
    maps = network.conv1(x)
    m = torch.cat([maps.amax((2, 3)), maps.amin((2, 3))], 1)
    q = network.fc3(torch.relu(network.fc2(torch.relu(network.fc1(m)))))[:, 0]
    torch.testing.assert_close(CNNIQA.from_file(tmp_path / "iqa.safetensors")(x), q)


def test_five_points_turn_a_face_upright(tmp_path):
    """A face turned by 30 degrees comes back as it was: its points lie where ArcFace has them."""
    side, angle = 112, np.radians(30)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) * 0.8
    points = (POINTS * side - side / 2) @ turn.T + 100
    canvas = np.zeros((200, 200, 3), np.uint8)
    for n, (x, y) in enumerate(points):
        canvas[round(y) - 3 : round(y) + 4, round(x) - 3 : round(x) + 4] = 60 + 40 * n
    Image.fromarray(canvas).save(tmp_path / "a.png")
    (tmp_path / "points.csv").write_text(
        "file,x1,y1\na.png," + ",".join(f"{v:.2f}" for v in points.reshape(-1)) + "\n"
    )
    found = Landmarks(tmp_path / "points.csv").require(tmp_path / "a.png")
    cut = np.asarray(crop(Image.open(tmp_path / "a.png"), found, 1.0).resize((side, side)).convert("L"))
    for n, (x, y) in enumerate(POINTS * side):
        assert cut[round(y), round(x)] == pytest.approx(60 + 40 * n, abs=12)


def test_landmarks_of_both_kinds_and_pictures_without(tmp_path):
    row = "1 1 3 1 2 2 1 3 3 3"
    for name in ("a.png", "ab.png"):
        (tmp_path / name).touch()
    (tmp_path / "points.txt").write_text(f"a.png {row}\n")
    known = Landmarks(tmp_path / "points.txt")
    assert known.of(tmp_path / "a.png").points.shape == (5, 2)
    with pytest.raises(DataError, match=r"ab.png: .*points.txt tells of no face in it. Did you mean 'a.png'"):
        known.require(tmp_path / "ab.png")
    (tmp_path / "boxes.jsonl").write_text('{"file": "a.png", "box": [0, 0, 4, 4]}\n')
    assert Landmarks(tmp_path / "boxes.jsonl").of(tmp_path / "a.png").points is None
    (tmp_path / "points.txt").write_text(f"a.png {row}\nb.png 1 2 3\n")
    with pytest.raises(DataError, match="line 2: 'b.png 1 2 3'; expected a file's name and ten numbers"):
        Landmarks(tmp_path / "points.txt")
