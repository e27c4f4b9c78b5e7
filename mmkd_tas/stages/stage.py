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
    grid: tuple[int, int] = (1, 1)

    @property
    def tokens(self) -> int:
        """Number of positions, without the prefix tokens."""
        return self.grid[0] * self.grid[1]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the output for one image, without the batch dimension."""
        sizes = dict(C=self.channels, H=self.grid[0], W=self.grid[1], L=self.prefix + self.tokens)
        return tuple(sizes[dim] for dim in self.layout[1:])

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
        if 'L' not in self.layout:
            tokens = tokens.unflatten(1, self.grid)
        return tokens.movedim(-1, self.layout.index('C'))

    def _all_tokens(self, feature: Tensor) -> Tensor:
        channels_last = feature.movedim(self.layout.index('C'), -1)
        return channels_last.reshape(len(feature), -1, self.channels)

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
        channels, *grid = sizes if layout[1] == 'C' else (sizes[-1], *sizes[:-1])
        known = dict(layout=layout, channels=channels, grid=tuple(grid))
        if found and found.layout == layout:
            known = asdict(found)
        stage = cls(**{**known, **entry})
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
        for layout in LAYOUTS:
            dim = layout.index('C') - 1
            if len(layout) != positions.ndim + 1 or positions.shape[dim] == 1:
                continue
            plane = positions.select(dim, 0)
            if not (positions == plane.unsqueeze(dim)).all():
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
    rows, columns = plane[:, :1] // width, plane[:1] % width
    return bool(
        plane[0, 0] >= 0
        and (plane == rows * width + columns).all()
        and (rows.diff(dim=0) > 0).all()
        and (columns.diff(dim=1) > 0).all()
    )
