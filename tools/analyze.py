"""`mmkd-tas analyze`, for those who have not installed it: python tools/analyze.py --help"""

from mmkd_tas.commands import main

if __name__ == '__main__':
    main('analyze')
