"""`mmkd-tas test`, for those who have not installed it: python tools/test.py --help"""

from mmkd_tas.commands import main

if __name__ == '__main__':
    main('test')
