"""`mmkd-tas train`, for those who have not installed it: python tools/train.py --help"""

from mmkd_tas.commands import main

if __name__ == '__main__':
    main('train')
