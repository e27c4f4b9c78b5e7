"""What a stage emits, and the only code that knows layouts."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..errors import SetupError

LAYOUTS = ('NCHW', 'NHWC', 'NLC', 'NCL')


@dataclass(frozen=True)
class Stage:
    """One of the (usually four) parts of a classifier, seen from its output.

    Attributes:
        module: Path of the module whose output ends the stage.
        layout: ``'NCHW'``, ``'NHWC'``, ``'NLC'`` or ``'NCL'``: N images, C
            channels, H x W positions, L tokens (prefix tokens and then the
            positions row by row); ``'NC'`` for a vector, as the pooled feature.
        prefix: Number of class, distillation and register tokens in front.
        channels: C.
        grid: ``(H, W)``.
    """

    module: str
    layout: str
    prefix: int = 0
    channels: int = 0
    grid: tuple[int, int] = (0, 0)

    @property
    def tokens(self) -> int:
        """Number of positions, without the prefix tokens."""
        return self.grid[0] * self.grid[1]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the output for one image, without the batch dimension."""
        height, width = self.grid
        length = self.tokens + self.prefix
        return {
            'NCHW': (self.channels, height, width),
            'NHWC': (height, width, self.channels),
            'NLC': (length, self.channels),
            'NCL': (self.channels, length),
            'NC': (self.channels,),
        }[self.layout]

    def to_tokens(self, feature: Tensor) -> Tensor:
        """Return the positions of a feature as tokens ``(N, L, C)``, without the prefix."""
        return self._all_tokens(feature)[:, self.prefix :]

    def prefix_tokens(self, feature: Tensor) -> Tensor:
        """Return the prefix tokens of a feature, ``(N, prefix, C)``."""
        return self._all_tokens(feature)[:, : self.prefix]

    def to_map(self, feature: Tensor) -> Tensor:
        """Return the positions of a feature as a map ``(N, C, H, W)``, contiguous."""
        if self.layout == 'NCHW':
            return feature
        return self.to_tokens(feature).transpose(1, 2).unflatten(2, self.grid).contiguous()

    def from_tokens(self, tokens: Tensor, prefix: Tensor | None = None) -> Tensor:
        """Return tokens ``(N, L, C)`` in the layout of this stage.

        Args:
            tokens: One per position.
            prefix: ``(N, prefix, C)``, where the stage has prefix tokens.
        """
        if self.prefix:
            tokens = torch.cat([prefix.to(tokens.dtype), tokens], dim=1)
        if self.layout == 'NLC':
            return tokens
        if self.layout == 'NHWC':
            return tokens.unflatten(1, self.grid)
        channels_first = tokens.transpose(1, 2)
        return channels_first.unflatten(2, self.grid) if self.layout == 'NCHW' else channels_first

    def _all_tokens(self, feature: Tensor) -> Tensor:
        if self.layout == 'NLC':
            return feature
        if self.layout == 'NC':
            return feature[:, None]
        if self.layout == 'NHWC':
            return feature.flatten(1, 2)
        return feature.flatten(2).transpose(1, 2)

    def measured(self, shape: tuple[int, ...], image: tuple[int, int]) -> 'Stage':
        """Fill in channels and grid from the shape of a real output.

        Values that are given already are kept, and must be true.

        Args:
            shape: Of the output, without the batch dimension.
            image: ``(H, W)`` of the image, to tell the grid of a row of tokens.

        Raises:
            SetupError: If layout, prefix, channels or grid contradict the shape.
        """
        maps = self.layout in ('NCHW', 'NHWC')
        if len(shape) != (3 if maps else 2) or (maps and self.prefix):
            raise self._contradiction(shape)
        channels = shape[0] if self.layout in ('NCHW', 'NCL') else shape[-1]
        if maps:
            grid = tuple(shape[1:]) if self.layout == 'NCHW' else tuple(shape[:2])
        else:
            length = shape[0 if self.layout == 'NLC' else 1] - self.prefix
            grid = self.grid if self.grid != (0, 0) else _grid_of(length, image)
        stage = replace(self, channels=self.channels or channels, grid=grid)
        wrong_grid = self.grid not in ((0, 0), grid)
        if grid == (0, 0) or stage.shape != tuple(shape) or wrong_grid:
            raise self._contradiction(shape)
        return stage

    @classmethod
    def at(cls, module: str, positions: Tensor, width: int) -> 'Stage | None':
        """Return what a module emits, by the positions of its output, None if it has no grid.

        Args:
            module: Its path.
            positions: For one image, see :class:`Positions`.
            width: Of the image.
        """
        dims = {3: (('NCHW', 0), ('NHWC', 2)), 2: (('NLC', 1), ('NCL', 0))}
        for layout, dim in dims.get(positions.ndim, ()):
            plane = positions.select(dim, 0)
            if positions.shape[dim] == 1 or not (positions == plane.unsqueeze(dim)).all():
                continue  # these are not the channels
            prefix = 0
            if plane.ndim == 1:
                prefix = int((plane == -1).int().cumprod(0).sum())
                columns = len((plane[prefix:] % width).unique())
                if not columns or (len(plane) - prefix) % columns:
                    continue
                plane = plane[prefix:].unflatten(0, (-1, columns))
            if in_order(plane, width):
                return cls(module, layout, prefix, positions.shape[dim], tuple(plane.shape))
        return None

    def _contradiction(self, shape: tuple[int, ...]) -> SetupError:
        said = f'layout={self.layout!r}, prefix={self.prefix}'
        if self.channels:
            said += f', channels={self.channels}'
        if self.grid != (0, 0):
            said += f', grid={self.grid}'
        return SetupError(
            f"stages: '{self.module}' is declared as {said}, but its output for one image has the "
            f'shape {tuple(shape)}; correct the entry of `stages`'
        )


def in_order(plane: Tensor, width: int) -> bool:
    """Whether positions ``(H, W)`` are those of an image of some width, row by row."""
    rows, columns = plane // width, plane % width
    return bool(
        (plane >= 0).all()
        and (rows == rows[:, :1]).all()
        and (columns == columns[:1]).all()
        and (rows.diff(dim=0) > 0).all()
        and (columns.diff(dim=1) > 0).all()
    )


def _grid_of(length: int, image: tuple[int, int]) -> tuple[int, int]:
    """Return the H x W = length of nearly the same shape as the image, else (0, 0)."""

    def distortion(height: int) -> float:
        ratio = (image[0] / height) / (image[1] * height / length)
        return max(ratio, 1 / ratio)

    heights = [h for h in range(1, length + 1) if length % h == 0]
    best = min(heights, key=distortion, default=0)
    # Padding to whole patches distorts a little; more means that it is no grid.
    return (best, length // best) if best and distortion(best) < 1.5 else (0, 0)
