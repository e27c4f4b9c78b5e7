"""Images that cannot be read."""

import resource

import cv2
import numpy as np
import pytest
from helpers import captured_log
from mmengine.registry import TRANSFORMS

from mmkd_tas.errors import SetupError


@pytest.fixture(params=['cv2', 'pillow'])
def load_image(request, tmp_path):
    """Write a file, or none, and load it as an image."""

    def load_image(content, ignore_empty=True, **kwargs):
        path = tmp_path / 'an image.jpg'
        if content is not None:
            path.write_bytes(content)
        kwargs = {'imdecode_backend': request.param, **kwargs}
        loader = TRANSFORMS.build(
            dict(type='LoadImageFromFile', ignore_empty=ignore_empty, **kwargs)
        )
        return loader(dict(img_path=str(path)))

    return load_image


def jpeg():
    image = np.random.default_rng(0).integers(0, 256, (20, 20, 3), dtype=np.uint8)
    return cv2.imencode('.jpg', image)[1].tobytes()


@pytest.mark.parametrize('content', [b'', b'no image at all', jpeg()[:50], b'BM' + bytes(60)])
def test_what_decoders_refuse_is_a_broken_image(load_image, content):
    assert load_image(jpeg())['img'].shape == (20, 20, 3)
    with captured_log() as messages:
        assert load_image(content) is None
    assert ["an image.jpg' cannot be read as an image" in text for text in messages] == [True]
    with pytest.raises(SetupError, match="an image.jpg' cannot be read as an image: replace it"):
        load_image(content, ignore_empty=False)


@pytest.mark.parametrize('ignore_empty', [True, False])
def test_what_is_no_fault_of_an_image_is_raised(load_image, ignore_empty):
    with pytest.raises(FileNotFoundError, match='an image.jpg'):
        load_image(None, ignore_empty)
    load_image(jpeg(), ignore_empty)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, limits[1]))
    try:
        with pytest.raises(OSError, match='Too many open files'):
            load_image(None, ignore_empty)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    with pytest.raises(ValueError, match='Supported backends are'):
        load_image(jpeg(), ignore_empty, imdecode_backend='openev')
    with pytest.raises((KeyError, ValueError), match='colour'):
        load_image(jpeg(), ignore_empty, color_type='colour')
    with pytest.raises(AttributeError):  # TurboJPEG is not set up
        load_image(jpeg(), ignore_empty, imdecode_backend='turbojpeg')
