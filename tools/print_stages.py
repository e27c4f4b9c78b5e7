"""`mmkd-tas stages`, for those who have not installed it: python tools/print_stages.py --help"""

from mmkd_tas.commands import main

if __name__ == '__main__':
    main('stages')
