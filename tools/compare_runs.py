"""`mmkd-tas compare`, for those who have not installed it: python tools/compare_runs.py --help"""

from mmkd_tas.commands import main

if __name__ == '__main__':
    main('compare')
