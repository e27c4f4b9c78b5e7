# What papers compare with, on the digits, with the defaults of today
_base_ = './digits.py'
seeds = 1
rows = [
    'student alone',
    'KD',
    'DKD',
    'DIST',
    'FitNet',
    'CC',
    'RKD',
    'CRD',
    'RSD on logits',
    'PAT',
]
_today = dict(_delete_=True)
teacher = dict(options=_today)
student = dict(options=_today)
