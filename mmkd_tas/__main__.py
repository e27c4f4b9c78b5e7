"""``python -m mmkd_tas`` is ``mmkd-tas``; so several processes start: ``torchrun -m mmkd_tas``."""

from .commands import main

if __name__ == '__main__':
    main()
