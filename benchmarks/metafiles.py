"""Cost and results of the configs, for configs/*/metafile.yml: python benchmarks/metafiles.py"""

import statistics
from pathlib import Path

import mmengine
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope

from mmkd_tas import cli
from mmkd_tas.configs import set_num_classes
from mmkd_tas.stages import describe
from mmkd_tas.stages.costs import costs_of

ROOT = Path(__file__).parents[1]
# By the data of a config: the record of its trainings, and what the data are called there.
RECORDS = {'digits200': ('digits', 'Digits')}
ROWS = {'tas': 'TAS', 'ofa': 'OFA', 'hcd': 'HCD'}


def cost_of(config: Config) -> dict[str, int]:
    """Return FLOPs (one for a multiplication with an addition) and parameters of a student."""
    config = cli.student_config(config)
    set_num_classes(config.model, config.data_preprocessor.num_classes)
    costs = costs_of(describe(MODELS.build(config.model), config.input_size))
    return {
        'FLOPs': sum(cost.flops for cost in costs) // 2,
        'Parameters': sum(cost.parameters for cost in costs),
    }


def results_of(method: str, pair: str, data: str) -> list[dict]:
    """Return the mean over the seeds that were run; empty where nothing was."""
    if data not in RECORDS:
        return []
    name, dataset = RECORDS[data]
    record = mmengine.load(ROOT / f'benchmarks/results/{name}.json')
    rows = {'Top 1 Accuracy': ROWS[method], 'Top 1 Accuracy, student alone': 'student alone'}
    metrics = {}
    for metric, row in rows.items():
        runs = [run for run in record['runs'] if (run['row'], run['pair']) == (row, pair)]
        metrics[metric] = round(statistics.mean(run['top1'] for run in runs), 2)
    model = pair.partition('_')[0]
    (teacher,) = (r for r in record['runs'] if r['row'] == 'teacher' and r['model'] == model)
    metrics['Top 1 Accuracy, teacher'] = teacher['top1']
    return [{'Task': 'Image Classification', 'Dataset': dataset, 'Metrics': metrics}]


def completed(entry: dict) -> dict:
    """Return an entry of a metafile with what its student costs, and with its results."""
    path = ROOT / entry['Config']
    method, teacher, student, _, data = path.stem.split('_')
    entry = {key: value for key, value in entry.items() if key != 'Results'}
    entry['Metadata'] = {**entry['Metadata'], **cost_of(Config.fromfile(path))}
    results = results_of(method, f'{teacher}_{student}', data)
    return {**entry, 'Results': results} if results else entry


def main() -> None:
    """Complete all metafiles."""
    init_default_scope('mmpretrain')
    for file in mmengine.load(ROOT / 'model-index.yml')['Import']:
        content = mmengine.load(ROOT / file)
        content['Models'] = list(map(completed, content['Models']))
        mmengine.dump(content, ROOT / file, sort_keys=False, width=1000)


if __name__ == '__main__':
    cli.run(main)
