"""What has to be installed beside this package, and what must not be."""

import importlib.util
import sys
from importlib import metadata
from pathlib import Path


def check() -> None:
    """Look for what pip cannot tell: that there is an mmcv, and OpenMMLab's own packages.

    Raises:
        ImportError: If there is no mmcv, or a fork has taken the place of a package.
    """
    if problem := _problem():
        if Path(sys.argv[0]).stem == 'mmkd-tas':  # a command ends with the sentence alone
            sys.exit(f'error: {problem}')
        raise ImportError(problem)


def _problem() -> str | None:
    packages = 'mmengine', 'mmcv', 'mmpretrain', 'mmrazor'
    if forks := [f'onedl-{package}' for package in packages if _installed(f'onedl-{package}')]:
        return (
            f'{" and ".join(forks)} put a fork in the place of a package of OpenMMLab; mmkd_tas '
            f"works with OpenMMLab's own: pip uninstall {' '.join(forks)}, then "
            "pip install --force-reinstall --no-deps 'mmengine==0.10.7' 'mmcv-lite<=2.1.0' "
            'mmpretrain==1.2.0'
        )
    if importlib.util.find_spec('mmcv') is None:
        return (
            "mmcv is not installed: pip install 'mmkd_tas[lite]', or 'mmkd_tas[full]' for the one "
            'with compiled operators, which models of some other packages need'
        )
    return None


def _installed(package: str) -> bool:
    try:
        metadata.distribution(package)
    except metadata.PackageNotFoundError:
        return False
    return True
