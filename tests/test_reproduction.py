"""The graph of a reproduction: shared work, killed runs, altered files, and tables that mix nothing."""

import errno
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import torch

from facemae_mm.config import load_config
from facemae_mm.evaluation.intervals import resampled_identities
from facemae_mm.reproduction import claims, numbers, run, stage, store
from facemae_mm.reproduction.claims import CLAIMS, FAILS, HOLDS, NOT_RUN, OPEN, Evidence, _above, _error_halved, _same
from facemae_mm.reproduction.data_flow import Embedder, Size
from facemae_mm.reproduction.measures import Measured, Measures, difference
from facemae_mm.reproduction.miniature import Miniature
from facemae_mm.reproduction.run import StageError, run_stages, to_run
from facemae_mm.reproduction.stage import Stage
from facemae_mm.reproduction.store import Store, content_digest
from facemae_mm.reproduction.tables import ALL, FIGURES, MASKS, TABLES, Cells, Row, Run, Table, stages_of

TOOL = """
    import sys, time
    from pathlib import Path
    word, out, *inputs = sys.argv[1:]
    with open(sys.argv[0] + '.log', 'a') as log:
        print(word, file=log)
    if word == 'fails':
        print('the reason that it gives')
        sys.exit(3)
    if word == 'full':
        with open('/dev/full', 'w') as file:
            file.write('more than fits')
    if word.startswith('slow'):
        print('at work', flush=True)
        time.sleep(60)
    if word == 'edits':
        Path('configs/recipe.py').write_text('rate = 2')
    text = word.split('!')[0] + ''.join(Path(name).read_text() for name in inputs)
    Path(out).write_text(text)
    (Path(out).parent / 'n.json').write_text('{"length": %d}' % len(text))
"""


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """A graph of stages that write a word behind their inputs' text: toy(name=(word, *inputs))."""
    tool = tmp_path / 'tool.py'
    tool.write_text(textwrap.dedent(TOOL))
    source = tmp_path / 'source.txt'
    source.write_text('s')
    monkeypatch.setitem(numbers.READERS, 'toy', lambda folder, inputs: json.loads((folder / 'n.json').read_text()))

    def make(**stages):
        graph = {
            name: Stage(name, name, (str(tool), word, '{out}/o.txt', *(f'{{{i}}}' for i in inputs)), 'o.txt', 'toy', 1)
            for name, (word, *inputs) in stages.items()
        }
        return Store(graph, dict(source=source), tmp_path / 'cache', tmp_path / 'results')

    make.runs = lambda: (tmp_path / 'tool.py.log').read_text().split() if (tmp_path / 'tool.py.log').exists() else []
    make.source = source
    make.quiet = lambda line: None
    return make


def text(made, name):
    return made.output(name).read_text()


def test_every_stage_runs_once_and_gives_its_inputs_on(toy):
    made = toy(a=('a', 'source'), b=('b', 'a'), c=('c', 'a', 'b'), d=('d', 'c'))
    run_stages(made, ['c', 'd'], 2, toy.quiet)
    assert text(made, 'd') == 'dcasbas' and sorted(toy.runs()) == ['a', 'b', 'c', 'd']
    record = json.loads((made.results / 'd.json').read_text())
    assert record['numbers'] == {'length': 7} and record['inputs'] == {'c': made.digest('c')}
    assert record['command'][:3] == ['python', str(toy.source.parent / 'tool.py'), 'd']
    run_stages(made, ['d', 'c'], 2, toy.quiet)
    assert len(toy.runs()) == 4


def test_only_what_is_asked_for_runs(toy):
    made = toy(a=('a',), b=('b', 'a'), c=('c', 'a'))
    run_stages(made, ['b'], 1, toy.quiet)
    assert toy.runs() == ['a', 'b']


def test_a_changed_setting_redoes_only_what_it_touches(toy):
    run_stages(toy(a=('a',), b=('b', 'a'), c=('c', 'a'), d=('d', 'b', 'c')), ['d'], 2, toy.quiet)
    made = toy(a=('a',), b=('B', 'a'), c=('c', 'a'), d=('d', 'b', 'c'))
    assert [one.name for one in to_run(made, ['d'])] == ['b', 'd']
    run_stages(made, ['d'], 2, toy.quiet)
    assert toy.runs()[4:] == ['B', 'd'] and text(made, 'd') == 'dBaca'
    before = toy(a=('a',), b=('b', 'a'), c=('c', 'a'), d=('d', 'b', 'c'))  # back: the files are there, numbers are not
    assert [one.name for one in to_run(before, ['d'])] == ['b', 'd']


def test_a_change_without_effect_ends_there(toy):
    run_stages(toy(a=('a',), b=('b', 'a'), c=('c', 'b')), ['c'], 1, toy.quiet)
    made = toy(a=('a!other',), b=('b', 'a'), c=('c', 'b'))  # writes the same text
    run_stages(made, ['c'], 1, toy.quiet)
    assert toy.runs()[3:] == ['a!other']


def test_a_recipe_that_is_edited_under_a_run_gives_no_record(toy, monkeypatch):
    """The command read one of them, and which one nobody knows."""
    made = toy(a=('a',), b=('b', 'a'))
    monkeypatch.chdir(toy.source.parent)
    recipe = toy.source.parent / 'configs' / 'recipe.py'
    recipe.parent.mkdir()
    recipe.write_text('rate = 1')
    words = (*made.stages['a'].command[:1], 'edits', '{out}/o.txt', 'configs/recipe.py')
    made.stages['a'] = Stage('a', 'a', words, 'o.txt', 'toy', 1)
    with pytest.raises(StageError, match='a: The recipe of stage a was edited while'):
        run_stages(made, ['b'], 1, toy.quiet)
    assert not made.results.exists() and toy.runs() == ['edits']
    stage._recipe.cache_clear()  # begun anew
    run_stages(made, ['b'], 1, toy.quiet)
    assert text(made, 'b') == 'beditsrate = 2'


def test_what_waits_when_a_run_is_stopped_does_not_start(tmp_path):
    processes = run._Processes()
    with (tmp_path / 'log').open('w') as log:
        assert processes.run(['-c', 'raise SystemExit(4)'], log, {})[0] == 4
        processes.stop()
        with pytest.raises(StageError, match='had not begun'):
            processes.run(['-c', f'open({str(tmp_path / "x")!r}, "w")'], log, {})
    assert not (tmp_path / 'x').exists()


def test_a_training_is_known_by_its_checkpoint_s_steps_and_its_last_losses(tmp_path):
    """The log says something every 50 steps alone; a run that went on counts from where it did."""
    for log, lines in dict(a=[(50, 8.0), (100, 6.0)], b=[(100, 4.0)]).items():
        path = tmp_path / log / 'vis_data' / 'scalars.json'
        path.parent.mkdir(parents=True)
        path.write_text(''.join(json.dumps(dict(step=step, loss=loss, lr=1)) + '\n' for step, loss in lines))
    with (tmp_path / 'a/vis_data/scalars.json').open('a') as file:
        file.write('{"step": 110, "lo')  # cut off where the run was killed
    torch.save(dict(meta=dict(iter=117), state_dict={}), tmp_path / 'epoch_9.pth')
    (tmp_path / 'last_checkpoint').write_text('/elsewhere/epoch_9.pth')
    assert numbers.READERS['training'](tmp_path, {}) == dict(iterations=117, loss=4.0)


def test_a_record_says_nothing_of_where_things_lie(tmp_path):
    """What tools write of their command and of their embedder's place is left out."""
    found = dict(command='python tools/x.py /home', embedder=dict(checkpoint='/home/r50', sha256='a'), mmd2=0.25)
    (tmp_path / 'feature_map.json').write_text(json.dumps(found))
    (tmp_path / 'compare_faces.json').write_text(json.dumps(dict(command='/home', photos=3)))
    assert numbers.READERS['feature_map'](tmp_path, {}) == dict(embedder=dict(sha256='a'), mmd2=0.25)
    assert numbers.READERS['compare_faces'](tmp_path, {}) == dict(photos=3)


def test_recipes_are_read_one_at_a_time(monkeypatch, repository):
    """Threads ask for keys at once, and what one option sets must not reach the recipe of another."""
    monkeypatch.chdir(repository)
    graph = Miniature()
    stages = [graph.stages[graph.facemae(0, rm_weight=weight)] for weight in (0.25, 0.5, 0.75, 1.5) * 4]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda made: stage._recipe.__wrapped__(made.command), stages))
    weights = [recipe['rm_weight'] for recipe in found]
    assert weights == [0.25, 0.5, 0.75, 1.5] * 4


def test_another_source_redoes_everything(toy):
    run_stages(toy(a=('a', 'source'), b=('b',)), ['a', 'b'], 1, toy.quiet)
    toy.source.write_text('S')
    made = toy(a=('a', 'source'), b=('b',))
    run_stages(made, ['a', 'b'], 1, toy.quiet)
    assert toy.runs() == ['a', 'b', 'a'] and text(made, 'a') == 'aS'


def test_lost_files_are_made_anew_only_where_somebody_needs_them(toy):
    stages = dict(a=('a',), b=('b', 'a'), c=('c', 'b'))
    made = toy(**stages)
    run_stages(made, ['c'], 1, toy.quiet)
    for name in 'ab':
        made.output(name).unlink()
    made = toy(**stages)
    assert to_run(made, ['c']) == []  # its numbers are there
    (made.results / 'c.json').unlink()
    assert [one.name for one in to_run(made, ['c'])] == ['a', 'b', 'c']
    run_stages(made, ['c'], 1, toy.quiet)
    assert text(made, 'c') == 'cba'


def test_lost_numbers_that_come_back_different_are_not_mixed(toy, tmp_path):
    stages = dict(a=('a',), b=('b', 'a'), c=('c', 'a'))
    made = toy(**stages)
    run_stages(made, ['b', 'c'], 1, toy.quiet)
    tool = tmp_path / 'tool.py'
    tool.write_text(tool.read_text().replace("word.split('!')[0] +", "'other ' + word +"))  # another machine, say
    made.output('a').unlink()
    (made.results / 'b.json').unlink()
    made = toy(**stages)
    run_stages(made, ['b', 'c'], 1, toy.quiet)
    assert text(made, 'b') == 'other bother a' and text(made, 'c') == 'other cother a'


def test_an_altered_output_is_an_error_that_says_what_to_do(toy):
    stages = dict(a=('a',), b=('b', 'a'))
    made = toy(**stages)
    run_stages(made, ['b'], 1, toy.quiet)
    made.output('a').write_text('by hand')
    (made.results / 'b.json').unlink()
    with pytest.raises(StageError, match='is not what stage a made: it was altered since. Delete'):
        run_stages(toy(**stages), ['b'], 1, toy.quiet)
    assert toy.runs() == ['a', 'b'] and not (made.results / 'b.json').exists()


def test_a_failed_stage_stops_what_needs_it_and_nothing_else(toy):
    made = toy(a=('a',), bad=('fails', 'a'), after=('x', 'bad'), other=('o', 'a'))
    said = []
    with pytest.raises(StageError, match='2 of 4 stages have not run. bad: it ended with exit code 3. the reason that'):
        run_stages(made, ['after', 'other'], 1, said.append)
    assert text(made, 'other') == 'oa' and 'x' not in toy.runs()
    assert any(line.startswith('bad failed') for line in said)
    made = toy(a=('a',), bad=('mended', 'a'), after=('x', 'bad'), other=('o', 'a'))
    run_stages(made, ['after', 'other'], 1, toy.quiet)
    assert toy.runs() == ['a', 'fails', 'o', 'mended', 'x'] and text(made, 'after') == 'xmendeda'


def test_a_reader_that_fails_stops_no_other_stage(toy, monkeypatch):
    """Whatever damaged bytes raise."""

    def read(folder, inputs):
        if 'bad' in folder.name:
            raise RuntimeError('PytorchStreamReader failed')
        return {}

    monkeypatch.setitem(numbers.READERS, 'toy', read)
    made = toy(bad=('a',), good=('b',))
    with pytest.raises(StageError, match='1 of 2 stages have not run. bad: PytorchStreamReader failed'):
        run_stages(made, ['bad', 'good'], 2, toy.quiet)
    assert made.record(made.stages['good'])


def test_a_damaged_checkpoint_is_named(tmp_path):
    path = tmp_path / 'epoch_1.pth'
    path.write_bytes(b'no checkpoint')
    with pytest.raises(ValueError, match=r'epoch_1.pth is a damaged checkpoint: .* Delete its folder'):
        content_digest(path)


def test_a_source_is_its_bytes_and_what_nothing_reads_is_none(tmp_path):
    """Weights from outside may be a bare state dict; a look into a folder leaves hidden files."""
    torch.save(dict(weight=torch.ones(2)), tmp_path / 'backbone.pth')
    folder = tmp_path / 'faces'
    (folder / 'Ann').mkdir(parents=True)
    (folder / 'Ann/1.png').write_bytes(b'1')

    def digests():
        made = Store({}, dict(phi=tmp_path / 'backbone.pth', faces=folder), tmp_path / 'cache', tmp_path / 'results')
        return made.digest('phi'), made.digest('faces')

    before = digests()
    for name in ('.DS_Store', 'Ann/Thumbs.db', 'Ann/.hidden'):
        (folder / name).write_bytes(b'x')
    assert digests() == before
    (folder / 'Ann/2.png').write_bytes(b'2')
    assert digests()[0] == before[0] and digests()[1] != before[1]


def test_two_caches_do_not_share_results(toy, tmp_path):
    made = toy(a=('a',))
    (tmp_path / 'results').mkdir()
    holds = 'import fcntl, sys, time; f = open(sys.argv[1], "a"); fcntl.lockf(f, fcntl.LOCK_EX); print(1, flush=True)'
    holder = [sys.executable, '-c', f'{holds}; time.sleep(60)', str(tmp_path / 'results/lock')]
    other = subprocess.Popen(holder, stdout=subprocess.PIPE)
    other.stdout.readline()
    try:
        with pytest.raises(FileExistsError, match='Another process is at work on .*results'):
            made.lock()
    finally:
        other.kill()
        other.wait()
    with made.lock():
        assert (tmp_path / 'cache/lock').exists() and (tmp_path / 'results/lock').exists()
    assert not list(tmp_path.glob('*/lock'))


@pytest.mark.skipif(not os.path.exists('/dev/full'), reason='no device that is always full')
def test_a_full_disk_stops_a_stage_and_loses_nothing(toy):
    made = toy(a=('a',), b=('full', 'a'))
    with pytest.raises(StageError, match=r'b: .*No space left on device.*the same command goes on'):
        run_stages(made, ['b'], 1, toy.quiet)
    assert not (made.results / 'b.json').exists() and made.record(made.stages['a'])


def test_a_disk_that_is_full_when_numbers_are_kept_leaves_no_record(toy, monkeypatch):
    made = toy(a=('a',))

    @contextmanager
    def full(path, mode):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        yield

    with monkeypatch.context() as patched:
        patched.setattr(store, 'whole_file', full)
        with pytest.raises(StageError, match='a: .*No space left on device'):
            run_stages(made, ['a'], 1, toy.quiet)
    assert not list(made.results.iterdir())
    run_stages(made, ['a'], 1, toy.quiet)
    assert text(made, 'a') == 'a' and made.record(made.stages['a'])['numbers'] == {'length': 1}


def test_a_cut_off_record_says_what_to_do(toy):
    made = toy(a=('a',))
    run_stages(made, ['a'], 1, toy.quiet)
    (made.results / 'a.json').write_text('{"key": "')
    with pytest.raises(ValueError, match='Delete it, and the same command makes a anew'):
        to_run(toy(a=('a',)), ['a'])


SCRIPT = """
    import json, sys
    from pathlib import Path
    from facemae_mm.reproduction import numbers
    from facemae_mm.reproduction.run import run_stages
    from facemae_mm.reproduction.stage import Stage
    from facemae_mm.reproduction.store import Store
    numbers.READERS['toy'] = lambda folder, inputs: {}
    folder = Path(sys.argv[1])
    stage = Stage('slow', 'slow', (str(folder / 'tool.py'), 'slow', '{out}/o.txt'), 'o.txt', 'toy', 1)
    import signal
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    store = Store({'slow': stage}, {}, folder / 'cache', folder / 'results')
    with store.lock():
        run_stages(store, ['slow'], 1, print)
"""


def at_work(folder):
    """The log of the slow stage, once it is at work."""
    for _ in range(600):
        logs = list((folder / 'cache').glob('slow-*/stage.log'))
        if logs and 'at work' in logs[0].read_text():
            return logs[0]
        time.sleep(0.1)
    raise AssertionError('the stage did not begin')


@pytest.mark.parametrize('how', [signal.SIGTERM, signal.SIGKILL])
def test_two_runs_at_once_and_runs_that_are_ended(toy, tmp_path, how, repository):
    toy()
    environment = os.environ | dict(PYTHONPATH=str(repository))
    script = [sys.executable, '-c', textwrap.dedent(SCRIPT), str(tmp_path)]
    first = subprocess.Popen(script, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    stage_process = None
    try:
        at_work(tmp_path)
        found = subprocess.run(['pgrep', '-f', str(tmp_path / 'tool.py')], capture_output=True, text=True)
        stage_process = int(found.stdout.split()[0])
        second = subprocess.run(script, env=environment, capture_output=True, text=True)
        assert second.returncode and 'Another process is at work' in second.stderr
        first.send_signal(how)
        first.wait(30)
        if how == signal.SIGTERM:  # its stage ends with it
            for _ in range(100):
                if not os.path.exists(f'/proc/{stage_process}'):
                    break
                time.sleep(0.1)
            assert not os.path.exists(f'/proc/{stage_process}')
        else:  # its stage goes on: the next run leaves it alone
            third = subprocess.run(script, env=environment, capture_output=True, text=True)
            assert third.returncode and 'is still at work for a run that was ended' in third.stderr
        assert not list((tmp_path / 'results').glob('*.json'))
    finally:
        first.kill()
        if stage_process and os.path.exists(f'/proc/{stage_process}'):
            os.kill(stage_process, signal.SIGKILL)


def test_what_an_interrupted_stage_took_is_counted(tmp_path):
    assert run._spend(tmp_path / 'spent.json', 2.0, 1.5) == dict(seconds=2.0, cpu_seconds=1.5)
    assert run._spend(tmp_path / 'spent.json', 3.0, 2.0) == dict(seconds=5.0, cpu_seconds=3.5)


def test_a_checkpoint_is_known_by_its_weights_alone(tmp_path):
    weights = dict(a=torch.arange(6.0).reshape(2, 3), b=torch.zeros(2, dtype=torch.bfloat16))
    torch.save(dict(state_dict=weights, meta=dict(time='now')), tmp_path / 'one.pth')
    torch.save(dict(state_dict=dict(reversed(weights.items())), meta={}), tmp_path / 'two.pth')
    weights['a'][0, 0] = 1e-30
    torch.save(dict(state_dict=weights), tmp_path / 'three.pth')
    one, two, three = (content_digest(tmp_path / f'{name}.pth') for name in ('one', 'two', 'three'))
    assert one == two != three


def test_links_belong_to_a_release(tmp_path):
    release = tmp_path / 'release'
    release.mkdir()
    (release / '0.png').write_bytes(b'face')
    alone = content_digest(release)
    links = tmp_path / 'release.private' / 'links.csv'
    links.parent.mkdir()
    links.write_text('released_path\n')
    linked = content_digest(release)
    (release / '0.png').rename(release / '1.png')
    assert len({alone, linked, content_digest(release)}) == 3


def test_the_key_depends_on_recipe_options_inputs_and_versions(monkeypatch, repository):
    monkeypatch.chdir(repository)
    graph = Miniature()
    made = graph.stages[graph.facemae(0)]
    digests = dict.fromkeys(made.inputs, 'x')
    keys = {made.key(digests), made.key(digests | {'start': 'y'})}
    other = graph.stages[graph.facemae(0, rm_weight=0.5)]
    keys.add(other.key(digests))
    monkeypatch.setattr(stage, 'versions', lambda packages: dict(torch='another'))
    keys.add(made.key(digests))
    assert len(keys) == 4
    assert other.recipe()['model']['head']['loss']['beta'] == pytest.approx(0.5 * 8**0.5)


def test_how_a_model_was_trained_reaches_its_release_by_its_weights_alone(tmp_path, monkeypatch, repository):
    """configs/mini/export.py inherits the training's settings: another learning rate there is no other release."""
    monkeypatch.chdir(repository)
    graph = Miniature()
    model = graph.facemae(0)
    trained, released = graph.stages[model], graph.stages[graph.release(model, 0)]

    def keys(**settings):
        monkeypatch.setattr(stage, 'load_config', lambda path, given: load_config(path, given | settings))
        stage._recipe.cache_clear()
        return [made.key(dict.fromkeys(made.inputs, 'x')) for made in (trained, released)]

    now, faster = keys(), keys(**{'optim_wrapper.optimizer.lr': 0.5})
    narrower = keys(**{'model.backbone.arch.embed_dims': 96})
    stage._recipe.cache_clear()
    assert now[0] != faster[0] and now[1] == faster[1] != narrower[1]


@pytest.mark.parametrize(
    ('setting', 'trains', 'verifies'),
    [
        (dict(verification_pairs='other.csv'), False, True),
        ({'test_dataloader.batch_size': 7}, False, True),
        ({'train_dataloader.batch_size': 7}, True, False),
        (dict(num_classes=7), True, True),
        (dict(log_level='DEBUG'), False, False),
    ],
)
def test_a_setting_redoes_what_reads_it(monkeypatch, repository, setting, trains, verifies):
    monkeypatch.chdir(repository)
    graph = Miniature()
    trained = graph.recogniser(graph.faces('deploy'), 'original', 0, 'r18')
    both = graph.stages[trained], graph.stages[graph.verify(trained, 'r18')]

    def keys(**settings):
        monkeypatch.setattr(stage, 'load_config', lambda path, given: load_config(path, given | settings))
        return [made.key(dict.fromkeys(made.inputs, 'x'), anew=True) for made in both]

    before, after = keys(), keys(**setting)
    assert [before[0] != after[0], before[1] != after[1]] == [trains, verifies]


def test_tables_share_their_stages_and_their_recipes_are_read(monkeypatch, repository):
    """Every cell's command names options that its recipe knows; IM + RM is trained once for all tables."""
    monkeypatch.chdir(repository)
    graph = Miniature(dict(pack=Embedder('127.5/127.5/127.5', '127.5/127.5/127.5')))
    tables = [table(Cells(graph, 1)) for table in TABLES.values()]
    for made in graph.stages.values():
        made.recipe()  # an option that is unknown raises
        assert set(made.inputs) <= {*graph.stages, 'lfw', 'pairs', 'pack'}
    needed = stages_of(tables)
    assert len(needed) == len(set(needed)) and all(name in graph.stages for name in needed)
    assert sum(name.startswith('facemae') for name in graph.stages) >= 18


class Numbers(Measures):
    """Measures of cells whose numbers stand in a dict."""

    def __init__(self, found, tables=()):
        super().__init__(None, tables)
        self.found, self.asked = found, set()

    def numbers(self, name):
        self.asked.add(name)
        return self.found.get(name)


def answers(correct, **others):
    """What `numbers._verification` keeps of LFW, and of other sets."""
    digits = {name: ''.join('01'[int(value)] for value in row) for name, row in (dict(lfw=correct) | others).items()}
    return dict(answers={name: f'{int("1" + row, 2):x}' for name, row in digits.items()})


def rows(*counts):
    return [
        Row('', None, tuple(Run(f'{name}{run}', dict(judge=f's{name}{run}')) for run in range(count)), '')
        for name, count in zip('abc', counts)
    ]


def test_accuracy_resamples_people_as_literal_loops_do():
    rng = np.random.default_rng(0)
    pairs = rng.integers(7, size=(30, 2))
    correct = rng.random((3, 30)) < 0.7
    correct[0, :3] = False  # leading zeros
    found = {f'a{run}': answers(row) for run, row in enumerate(correct)} | {'parts': dict(pairs=pairs.tolist())}
    (row,) = rows(3)
    measured = Numbers(found).accuracy(row)
    values = []
    for drawn in resampled_identities(pairs.max() + 1):
        weight = [drawn[a] if a == b else drawn[a] * drawn[b] for a, b in pairs]
        values.append(np.mean([sum(w * c for w, c in zip(weight, run)) / sum(weight) for run in correct]))
    assert measured.by_run == pytest.approx(correct.mean(1)) and measured.mean == pytest.approx(correct.mean())
    np.testing.assert_allclose(measured.resampled, values, rtol=1e-12)
    assert (measured.low, measured.high) == pytest.approx(tuple(np.percentile(values, (2.5, 97.5))))


def test_answers_of_every_set_are_kept(tmp_path):
    (tmp_path / 'metrics.json').write_text('{"lfw/accuracy": 0.123456789}')
    lines = ['set,pair,same,distance,correct', 'cfp_fp,0,1,0.5,0', 'cfp_fp,1,0,0.5,1', 'lfw,0,1,0.1,1', 'lfw,1,0,0.1,0']
    (tmp_path / 'answers.csv').write_text('\n'.join(lines))
    kept = numbers._verification(tmp_path, {})
    assert kept == dict(metrics={'lfw/accuracy': 0.12346}, answers=dict(cfp_fp='5', lfw='6'))
    assert numbers.answers_of(kept, 'cfp_fp') == [False, True] and numbers.answers_of(kept, 'lfw') == [True, False]
    assert numbers.answers_of(kept, 'agedb_30') is None


def test_pairs_without_people_are_resampled_themselves():
    rng = np.random.default_rng(0)
    correct, other = rng.random((2, 40)) < 0.7, rng.random((2, 30)) < 0.6
    found = {f'a{run}': answers(row, cfp_fp=other[run]) for run, row in enumerate(correct)}
    (row,) = rows(2)
    measures = Numbers(found | {'parts': dict(pairs=[[0, 1]] * 40)})
    measured = measures.accuracy(row, set_name='cfp_fp')
    values = [np.mean([np.repeat(run, drawn).mean() for run in other]) for drawn in resampled_identities(30)]
    np.testing.assert_allclose(measured.resampled, values, rtol=1e-12)
    assert measured.by_run == pytest.approx(other.mean(1)) and measures.accuracy(row, set_name='agedb_30') is None
    assert Numbers(found).accuracy(row).mean == pytest.approx(correct.mean())  # a .bin of LFW, at the paper's size
    assert measures.sets([Table('', '', dict(a=row))]) == ['cfp_fp']


def test_half_the_error_is_asked_on_every_set_that_was_tested():
    right = np.arange(100)
    found = {
        'verify.ours': answers(right >= 1, cfp_fp=right >= 30, agedb_30=right >= 1),
        'verify.theirs': answers(right >= 30, cfp_fp=right >= 31),
    }
    table = Table('table1', '', {key: Row('', None, (Run(f'verify.{key}', {}),), '') for key in ('ours', 'theirs')})
    evidence = Evidence(Numbers(found), dict(table1=table), [])
    verdicts = {
        one.measure: one.verdict for one in _error_halved('table1.ours', ['table1.theirs', 'table1.no'])(evidence)
    }
    assert verdicts == {'accuracy': HOLDS, 'accuracy CFP-FP': FAILS, 'accuracy AgeDB': NOT_RUN}
    assert evidence.differences('table1.ours', 'table1.theirs').keys() == {
        'accuracy',
        'accuracy CFP-FP',
        'accuracy AgeDB',
    }


def test_nobody_s_error_is_halved_before_all_have_run():
    found = {
        f'verify.{key}': answers([True] * (99 - wrong) + [False] * (1 + wrong))
        for key, wrong in dict(ours=0, gan=30).items()
    }
    keys = ('ours', 'gan', 'mixup')
    table = Table('table1', '', {key: Row(key, None, (Run(f'verify.{key}', {}),), '') for key in keys})
    evidence = Evidence(Numbers(found), dict(table1=table), [])
    check = _error_halved('table1.ours', ['table1.gan', 'table1.mixup', 'table1.absent'])
    assert check(evidence)[0].verdict == NOT_RUN
    found['verify.mixup'] = answers([True] * 80 + [False] * 20)
    (verdict,) = check(evidence)
    assert verdict.verdict == HOLDS and verdict.runs == 1 and verdict.figures.endswith('of that of mixup')


def test_our_own_judge_is_not_asked_about_people_it_was_trained_on(monkeypatch, repository):
    monkeypatch.chdir(repository)
    cells = Cells(Miniature(dict(pack=Embedder())), 1)
    asked = {
        f'{name}.{key}': set(row.runs[0].separation)
        for name in ('table1', 'table4')
        for key, row in TABLES[name](cells).rows.items()
    }
    without = {key for key, judges in asked.items() if judges == {'pack'}}
    assert without == {'table1.synface', 'table1.synface_im', 'table4.c_w', 'table4.sub1_sub2', 'table4.sub2_sub1'}
    assert asked['table1.original'] == asked['table4.w_c'] == {'pack', 'own'} and not asked['table1.synface_dm']


def test_bins_reach_verification_alone_and_synthetic_faces_are_a_row(monkeypatch, repository):
    monkeypatch.chdir(repository)
    plain = Miniature()
    graph = Miniature(bins=('cfp_fp',), synthetic=Size(77, 770))
    for made in (plain, graph):
        table1 = TABLES['table1'](Cells(made, 1))
        assert ('synthetic' in table1.rows) == (made is graph)
    changed = {name for name, made in plain.stages.items() if graph.stages[name].command != made.command}
    assert changed == {name for name in plain.stages if name.startswith('verify.')}
    sets = graph.stages['verify.r18.original.s0'].recipe()['test_dataloader']['dataset']['sets']
    assert list(sets) == ['lfw', 'cfp_fp'] and sets['cfp_fp'] == dict(source='{cfp_fp}')
    (run,) = table1.rows['synthetic'].runs
    recogniser = graph.stages[run.verify.removeprefix('verify.')]
    assert recogniser.recipe()['model']['head']['num_classes'] == 77
    assert recogniser.recipe()['train_dataloader']['dataset']['source'] == '{synthetic}'
    assert '--links' not in graph.stages[run.separation['own']].command


def test_runs_that_have_not_run_are_left_out():
    found = {f'sa{run}': dict(by_person=[0.5, 0.75, 1.0]) for run in (0, 2)}
    (row,) = rows(3)
    measured = Numbers(found).separation(row, 'judge')
    assert measured.runs == 1 and measured.mean == 0.75
    assert Numbers({}).separation(row, 'judge') is None and Numbers({}).accuracy(row) is None


def test_runs_that_differ_in_recognisers_alone_are_one_run_of_separation():
    (row,) = rows(3)
    runs = tuple(replace(run, separation={'judge': 'same'}) for run in row.runs)
    measured = Numbers(dict(same=dict(by_person=[0.5, 1.0]))).separation(replace(row, runs=runs), 'judge')
    assert measured.runs == 1 and measured.mean == 0.75


def test_a_paired_difference_of_equals_is_zero_and_of_a_shift_is_the_shift():
    rng = np.random.default_rng(1)
    base = rng.random((3, 40)) * 0.5
    found = {f'sa{run}': dict(by_person=row.tolist()) for run, row in enumerate(base)}
    found |= {f'sb{run}': dict(by_person=(row + 0.1).tolist()) for run, row in enumerate(base)}
    a, b = (Numbers(found).separation(row, 'judge') for row in rows(3, 3))
    assert difference(b, a).low == pytest.approx(0.1) == difference(b, a).high
    assert difference(a, a).low == difference(a, a).high == 0
    fewer = difference(a, Numbers(found).separation(rows(2)[0], 'judge'))
    assert fewer.runs == 2 and fewer.mean == pytest.approx(a.mean - base[:2].mean())


def test_what_other_trainings_would_change_is_part_of_the_interval():
    """Of rows of known deviation: each row's by itself, over the root of its trainings, and none without a training."""
    rng = np.random.default_rng(3)
    people, deviation = rng.normal(0.7, 0.01, 400), 0.02
    names = [f'{name}{run}' for name in 'abcdefgh' for run in range(3)]
    found = {f's{name}': dict(by_person=(people + rng.normal(0, deviation)).tolist()) for name in names}

    def row(name, runs, varies, **more):
        return Row(name, None, tuple(Run(f'{name}{n}', dict(judge=f's{name}{n}')) for n in range(runs)), varies, **more)

    anew = {name: row(name, 3, ALL) for name in 'abcdefgh'}
    measures = Numbers(found, [Table('table1', '', anew), Table('table2', '', anew)])
    between, freedom = measures.between_trainings('separation judge')
    literal = np.mean([np.var([np.mean(found[f's{name}{n}']['by_person']) for n in range(3)], ddof=1) for name in anew])
    assert between == pytest.approx(literal**0.5) and freedom == 16  # a row that two tables show counts once
    width = {}
    for name, runs, varies, more in (
        ('anew', 3, ALL, {}),
        ('shared', 3, MASKS, {}),
        ('one', 1, ALL, {}),
        ('plain', 3, MASKS, dict(reconstructed=False)),
    ):
        measured = measures.separation(replace(row('a', runs, varies, **more)), 'judge')
        width[name] = (measured.high - measured.low) / 2
    assert width['one'] == pytest.approx(2.12 * between, rel=0.15)  # Student's t of 16
    assert width['shared'] == pytest.approx(width['one'], rel=0.15)
    assert width['anew'] == pytest.approx(width['one'] / 3**0.5, rel=0.15)
    assert width['plain'] < 0.1 * width['one']
    a, b = (measures.separation(anew[name], 'judge') for name in 'ab')
    assert difference(a, a).low == difference(a, a).high == 0  # the same row is moved alike
    spread = difference(a, b)
    assert (spread.high - spread.low) / 2 == pytest.approx(width['anew'] * 2**0.5, rel=0.15)
    assert Numbers(found).between_trainings('separation judge') == (0, 0)


class Differences(Evidence):
    """Evidence of differences that are given: (mean, low, high)."""

    def __init__(self, **given):
        self.given = given

    def row(self, place):
        return None

    def differences(self, a, b):
        found = self.given.get(f'{a}_{b}')
        return {'accuracy': found and Measured(3, *found, np.array(found), found)}


@pytest.mark.parametrize(
    ('interval', 'above', 'same', 'no_better'),
    [
        ((0.05, 0.03, 0.07), HOLDS, FAILS, FAILS),
        ((0.05, -0.01, 0.1), OPEN, OPEN, OPEN),
        ((-0.05, -0.07, -0.03), FAILS, FAILS, HOLDS),
        ((0.0, -0.01, 0.01), OPEN, HOLDS, HOLDS),
        ((0.01, 0.005, 0.015), HOLDS, HOLDS, FAILS),
        (None, NOT_RUN, NOT_RUN, NOT_RUN),
    ],
)
def test_verdicts(interval, above, same, no_better):
    evidence = Differences(a_b=interval)
    for check, verdict in ((_above, above), (_same, same), (claims._no_better, no_better)):
        (found,) = check('a', 'b')(evidence)
        assert found.verdict == verdict and found.runs == (0 if interval is None else 3)


def leaking(**rates):
    """An audit of one attacker: by pairing, (without, with) at the last number of identities."""
    points = {
        pairing: [dict(identities=9, without={'2': without}, **{'with': {'2': with_}})]
        for pairing, (without, with_) in rates.items()
    }
    return dict(attackers=dict(embedder=dict(leakage=points)))


@pytest.mark.parametrize(('few', 'verdict'), [((0.6, 0.55, 0.65), HOLDS), ((0.6, 0.0, 0.65), OPEN)])
def test_no_share_is_told_of_a_rate_that_may_be_none(few, verdict):
    def points(*rates):
        return [{'identities': n, 'without': {'2': list(rate)}} for n, rate in zip((9, 99), rates, strict=True)]

    found = dict(original_original=points((1, 1, 1), (1, 1, 1)), original_released=points(few, (0.1, 0.05, 0.15)))
    audit = dict(attackers=dict(embedder=dict(leakage=found)))
    table = Table('t', '', dict(ours=Row('ours', None, (Run('', {}, 'audit'),), '')))
    (said,) = claims._falls_more('t.ours')(Evidence(Numbers(dict(audit=audit)), dict(t=table), []))
    assert (said.verdict, said.runs) == (verdict, 1)


def test_a_claim_about_leakage_holds_where_it_does_in_every_run_that_has_run():
    low, high = [0.1, 0.05, 0.15], [0.9, 0.85, 0.95]
    found = {f'ours{run}': leaking(original_released=(low, low)) for run in range(3)}
    found |= {f'mae{run}': leaking(original_released=(high if run == 0 else low, high)) for run in range(2)}
    runs = {name: tuple(Run('', {}, f'{name}{run}') for run in range(3)) for name in ('ours', 'mae')}
    table = Table('t', '', {name: Row(name, None, of_row, '') for name, of_row in runs.items()})
    check = claims._leaks_less(('t.ours', 'original_released'), ('t.mae', 'original_released'))
    without, with_ = check(Evidence(Numbers(found), dict(t=table), []))
    assert (without.verdict, without.runs) == (OPEN, 2) and (with_.verdict, with_.runs) == (HOLDS, 2)
    assert '80.0 [72.9, 87.1] points lower, without the source; in other runs 0.0 [-7.1, 7.1]' in without.figures


def test_leakage_is_compared_by_the_interval_of_the_difference_with_and_without_the_source():
    """Intervals that overlap by a little can still differ surely: 64.1 [60.3, 67.3] and 53.3 [45.7, 60.6]."""
    above, below = [0.641, 0.603, 0.673], [0.533, 0.457, 0.606]
    found = dict(audit=leaking(original_released=(above, below), other=(below, above)))
    table = Table('t', '', dict(ours=Row('ours', None, (Run('', {}, 'audit'),), '')))
    evidence = Evidence(Numbers(found), dict(t=table), [])
    without, with_ = claims._leaks_less(('t.ours', 'other'), ('t.ours', 'original_released'))(evidence)
    assert (without.verdict, with_.verdict) == (HOLDS, FAILS)
    assert '10.8 [2.6, 19.0] points lower, without the source' in without.figures
    assert '-10.8 [-19.0, -2.6] points lower, with the source' in with_.figures
    (same, _) = claims._leaks_less(('t.ours', 'other'), ('t.ours', 'other'))(evidence)
    assert same.verdict == OPEN
    (absent,) = claims._leaks_less(('t.ours', 'none'), ('t.ours', 'other'))(evidence)
    assert absent.verdict == NOT_RUN


def test_every_claim_names_rows_and_stages_that_exist(repository, monkeypatch):
    """A claim whose rows are misspelt would read 'not run' for ever."""
    monkeypatch.chdir(repository)
    graph = Miniature(synthetic=Size(77, 770))
    cells = Cells(graph, 1)
    tables = {name: table(cells) for name, table in TABLES.items()}
    figures = {name: stages(cells) for name, stages in FIGURES.items()}
    assert {'fig1', 'fig4'} <= {stage for stages in figures.values() for stage in stages}
    asked = set()

    class Asked(Evidence):
        def row(self, place):
            asked.add(place)
            return super().row(place)

    numbers = Numbers({})
    evidence = Asked(numbers, tables, ['own'])
    for claim in CLAIMS:
        assert {verdict.verdict for verdict in claim.check(evidence)} == {NOT_RUN}
    assert len(asked) > 20 and {'fig1', 'fig4', 'alignment'} <= numbers.asked <= set(graph.stages)
    for place in asked:
        table, _, row = place.partition('.')
        assert row in tables[table].rows, place


def pairs(*found):
    return [dict(a=a, b=b) | values for a, b, values in found]


def test_claims_read_a_difference_whichever_way_it_was_taken():
    """FaceMAE's detail matches more; its SSIM at the mouth is open; how much detail there is decides nothing."""
    region = dict(detail=[2.0, 1.5, 2.5], match=[-0.1, -0.2, -0.05], ssim=[-0.1, -0.2, -0.05])
    mouth = region | dict(ssim=[0.01, -0.02, 0.04])
    fig4 = dict(differences=pairs(('mae', 'facemae', dict(eyes=region, mouth=mouth))))
    evidence = Evidence(Numbers(dict(fig4=fig4)), {}, [])
    assert [v.verdict for v in claims._more_detail('facemae', 'mae')(evidence)] == [HOLDS, OPEN]
    assert [v.verdict for v in claims._more_detail('mae', 'facemae')(evidence)] == [FAILS, FAILS]
    assert 'facemae − mae 0.100 [0.050, 0.200]' in claims._more_detail('facemae', 'mae')(evidence)[0].figures

    distances = dict(frechet=[0.2, 0.1, 0.3], mmd2=[-0.2, -0.3, -0.1])
    fig1 = dict(differences=pairs(('mae', 'facemae', distances)))
    evidence = Evidence(Numbers(dict(fig1=fig1)), {}, [])
    assert [v.verdict for v in claims._nearer('facemae', 'mae')(evidence)] == [HOLDS, FAILS]
    assert [v.verdict for v in claims._nearer('mae', 'facemae')(evidence)] == [FAILS, HOLDS]

    worse, same = dict(landmark_error=[0.1, 0.05, 0.2], found=[-0.1, -0.2, -0.05]), dict(found=[0, 0, 0])
    found = pairs(('seed0', 'eyes', {k: [-v for v in (x[0], x[2], x[1])] for k, x in worse.items()}))
    found += pairs(('mouth', 'seed0', worse | same))
    evidence = Evidence(Numbers(dict(alignment=dict(alignment=dict(differences=found)))), {}, [])
    assert [v.verdict for v in claims._aligns_worse('seed0', 'eyes')(evidence)] == [HOLDS, HOLDS]
    assert [v.verdict for v in claims._aligns_worse('seed0', 'eyes', 'mouth')(evidence)] == [HOLDS, OPEN]
    found[0]['landmark_error'] = None  # no photo was aligned in both
    assert [v.verdict for v in claims._aligns_worse('seed0', 'eyes', 'nose')(evidence)] == [NOT_RUN, NOT_RUN]
    assert [v.verdict for v in claims._aligns_worse('seed0', 'eyes')(evidence)] == [NOT_RUN, HOLDS]


def test_store_names_a_source_that_is_missing(tmp_path):
    made = Store({}, dict(lfw=tmp_path / 'nowhere'), tmp_path, tmp_path)
    with pytest.raises(FileNotFoundError, match='lfw: .*nowhere does not exist'):
        made.digest('lfw')
    assert store.output_path(Stage('a', '', ('x',), None, 'toy'), tmp_path) is None
