"""Images that cannot be read."""

import copy
import logging
import traceback
from collections.abc import Callable

import cv2
import mmcv
from mmcv.transforms import LoadImageFromFile
from mmengine.logging import print_log

from ..errors import SetupError
from . import around, patch, source


def _found_by_decoder(error: Exception) -> bool:
    """Return whether an image's bytes are at fault, and not its file, the machine or the config."""
    trace = list(traceback.walk_tb(error.__traceback__))
    if not any(frame.f_code is mmcv.imfrombytes.__code__ for frame, _ in trace):
        # OpenCV tells of most by returning nothing, which mmcv asserts it has not
        return isinstance(error, AssertionError) and trace[-1][0].f_locals.get('img', 0) is None
    if isinstance(error, cv2.error):
        return error.code != cv2.Error.StsNoMem
    if isinstance(error, ImportError | MemoryError) or getattr(error, 'errno', None) is not None:
        return False
    # mmcv itself refuses settings, as an unknown imdecode_backend
    return trace[-1][0].f_globals.get('__name__') != mmcv.imfrombytes.__module__


@patch(lambda: 'except Exception' in source(LoadImageFromFile.transform))
def broken_images() -> None:
    """mmcv 2.1.0, transforms/loading.py:81: ignore_empty=True passes over broken images alone."""
    passed_over = set()

    @around(LoadImageFromFile, 'transform')
    def transform(original: Callable, self: LoadImageFromFile, results: dict) -> dict | None:
        strict = copy.copy(self)
        strict.ignore_empty = False  # which would pass over a missing file, too
        try:
            return original(strict, results)
        except Exception as error:
            if not _found_by_decoder(error):
                raise
            path = results['img_path']
            if not self.ignore_empty:
                raise SetupError(
                    f"'{path}' cannot be read as an image: replace it, or take it out of the data"
                ) from error
            if path not in passed_over:
                passed_over.add(path)
                message = f"'{path}' cannot be read as an image: another one takes its place"
                print_log(message, 'current', logging.WARNING)
            return None
