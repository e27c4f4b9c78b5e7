"""`mmkd-tas export`, for those who have not installed it: python tools/export_student.py --help"""

from mmkd_tas.commands import main

if __name__ == '__main__':
    main('export')
