"""Reading and preprocessing pictures, against torchvision's and timm's transforms; the class names."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import cvops
from cvops.data import ImageError, imagenet_classes, load_image, preprocess
from cvops.models import Preprocess


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    """Smooth noise: random blocks, enlarged."""
    noise = np.random.default_rng(seed).integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)


SIZES = [(300, 200), (201, 335), (64, 64), (900, 333), (223, 1000)]


@pytest.mark.parametrize("name", ["mobilenet_v2", "efficientnet_b0", "efficientnet_b2", "efficientnet_b3"])
@pytest.mark.parametrize("size", SIZES)
def test_equals_torchvision_s_preset(name: str, size: tuple[int, int]) -> None:
    torchvision = pytest.importorskip("torchvision")
    transform = next(iter(torchvision.models.get_model_weights(name))).transforms(antialias=True)
    image = picture(*size)
    torch.testing.assert_close(preprocess(image, cvops.model_info(name).preprocess), transform(image))


TIMM = [n for n in cvops.list_models("tf_*") if "timm" in cvops.model_info(n).checkpoints and "lite" not in n]


@pytest.mark.parametrize("name", [*TIMM, "efficientnet_lite0"])
def test_equals_timm_s_transform(name: str) -> None:
    timm = pytest.importorskip("timm")
    # timm's first choice for B8 is adversarial training's weights, which alone have another normalisation.
    tagged = "tf_efficientnet_b8.ra_in1k" if name == "tf_efficientnet_b8" else name
    config = timm.data.resolve_data_config(pretrained_cfg=timm.get_pretrained_cfg(tagged).to_dict())
    image = picture(400, 301)
    want = timm.data.create_transform(**config)(image)
    torch.testing.assert_close(preprocess(image, cvops.model_info(name).preprocess), want)


# Lite4 is left out: timm crops 380 of 413 pixels, the authors 380 of 412.
@pytest.mark.parametrize("name", cvops.list_models("tf_*lite[0-3]"))
def test_lite_equals_timm_s_transform_but_for_the_authors_normalisation(name: str) -> None:
    timm = pytest.importorskip("timm")
    config = timm.data.resolve_data_config(pretrained_cfg=timm.get_pretrained_cfg(name).to_dict())
    spec = cvops.model_info(name).preprocess
    image = picture(400, 301)
    want = timm.data.create_transform(**config)(image) * 127.5 + 127.5
    torch.testing.assert_close(preprocess(image, spec) * 128 + 127, want, rtol=0, atol=1e-3)


def test_modes_of_pictures_become_rgb(tmp_path: Path) -> None:
    grey = np.arange(64, dtype=np.uint8).reshape(8, 8) * 4
    Image.fromarray(grey).save(tmp_path / "grey.png")
    Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / "grey16.png")
    Image.fromarray(grey).convert("P").save(tmp_path / "palette.png")
    for name in ("grey", "grey16", "palette"):
        pixels = np.asarray(load_image(tmp_path / f"{name}.png"))
        assert pixels.shape == (8, 8, 3)
        assert np.array_equal(pixels[..., 0], grey), name

    clear = np.zeros((4, 4, 4), np.uint8)
    Image.fromarray(clear, "RGBA").save(tmp_path / "clear.png")
    assert np.asarray(load_image(tmp_path / "clear.png")).min() == 255
    Image.new("CMYK", (4, 4)).save(tmp_path / "cmyk.jpg")
    assert load_image(tmp_path / "cmyk.jpg").mode == "RGB"


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[274] = 6  # rotated by a quarter turn
    picture(40, 24).save(tmp_path / "turned.jpg", exif=exif)
    assert load_image(tmp_path / "turned.jpg").size == (24, 40)


def test_what_is_no_picture_is_named(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("words")
    picture(64, 64).save(tmp_path / "whole.png")
    (tmp_path / "half.png").write_bytes((tmp_path / "whole.png").read_bytes()[:200])
    for name in ("text.png", "half.png"):
        with pytest.raises(ImageError, match=name):
            load_image(tmp_path / name)
    with pytest.raises(ImageError, match="is a folder"):
        load_image(tmp_path)
    with pytest.raises(FileNotFoundError, match="no such file"):
        load_image(tmp_path / "absent.png")


def test_tiny_picture_is_enlarged() -> None:
    values = preprocess(
        Image.new("RGB", (1, 3), "white"), Preprocess(size=32, resize=36, mean=(0.0,) * 3, std=(1.0,) * 3)
    )
    assert torch.equal(values, torch.ones(3, 32, 32))


def test_class_names() -> None:
    names = imagenet_classes()
    assert len(names) == len(set(names)) == 1000
    assert (names[0], names[285], names[967], names[999]) == ("tench", "Egyptian cat", "espresso", "toilet tissue")
