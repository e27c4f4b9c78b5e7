"""What a stage emits, and the only code that knows layouts."""

from dataclasses import asdict, dataclass

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

    @classmethod
    def declared(cls, entry: dict, sizes: tuple[int, ...], found: 'Stage | None') -> 'Stage':
        """Return the stage that an entry of ``stages`` declares.

        Args:
            entry: ``module`` and any of the other attributes. What it leaves out is as found.
            sizes: Of the module's output for one image.
            found: What its positions say, as far as they are known.

        Raises:
            SetupError: If the entry contradicts the output.
        """
        usual = found.layout if found else 'NCHW' if len(sizes) == 3 else 'NLC'
        layout = entry.get('layout', usual)
        if layout not in LAYOUTS:
            raise SetupError(f'stages: {entry["module"]!r} has {layout=}, none of {LAYOUTS}')
        first = layout in ('NCHW', 'NCL')
        known = dict(channels=sizes[0 if first else -1], grid=sizes[1:] if first else sizes[:-1])
        if found and found.layout == layout:
            known = asdict(found)
        stage = cls(**{**known, 'layout': layout, **entry})
        wrong_prefix = stage.prefix and len(sizes) == 3
        if len(stage.grid) != 2 or wrong_prefix or stage.shape != sizes:
            raise SetupError(
                f'stages: {stage.module!r} is declared as {layout=}, prefix={stage.prefix}, but '
                f'its output for one image has the shape {sizes}, which channels={stage.channels} '
                f'and grid={stage.grid} do not give; correct the entry of `stages`, or say more '
                'in it: grid=(H, W)'
            )
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
