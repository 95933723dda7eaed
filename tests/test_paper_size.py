"""The paper's size: every command's recipe and options, what the plan says, and operations against a count by hand."""

import importlib.util
import re
import sys

import pytest
from mmpretrain.registry import DATASETS
from tiny import SMALL_FACEMAE, small_recipe, write_faces

from facemae_mm.flops import TrainingFlops, count_prediction, count_training
from facemae_mm.reproduction import plan as plans
from facemae_mm.reproduction.claims import CLAIMS, NOT_RUN, Evidence
from facemae_mm.reproduction.data_flow import Embedder, Size
from facemae_mm.reproduction.measures import Measures
from facemae_mm.reproduction.paper_size import SOURCES, PaperSize, count_parts
from facemae_mm.reproduction.plan import Costs, needed
from facemae_mm.reproduction.tables import FIGURES, TABLES, Cells, stages_of

PACK = dict(pack=Embedder('127.5/127.5/127.5', '127.5/127.5/127.5'))


@pytest.fixture
def few_operations(monkeypatch):
    """No network is counted."""
    monkeypatch.setattr(plans, 'count_training', lambda config: TrainingFlops(6e9, 1e9, 10_000_000))
    monkeypatch.setattr(plans, 'count_prediction', lambda config: 2e9)


def everything(**options):
    """A graph with all tables and figures, its tables, and what they need."""
    graph = PaperSize(**options)
    cells = Cells(graph, 1)
    tables = {name: table(cells) for name, table in TABLES.items()}
    targets = stages_of(list(tables.values())) + [name for figure in FIGURES.values() for name in figure(cells)]
    return graph, tables, targets


def test_the_plan_has_every_stage_with_its_cost(monkeypatch, repository, few_operations, tmp_path):
    monkeypatch.chdir(repository)
    graph, _, targets = everything(unseen=PACK, synthetic=True)
    stages, costs = needed(graph.stages, targets), Costs(graph)
    assert {stage.name for stage in stages} >= set(targets)
    for stage in stages:
        assert set(stage.inputs) <= {*graph.stages, *SOURCES, 'pack'}
        cost = costs[stage.name]
        assert cost.flops > 0 if cost.gpus else cost.disk > 0 or stage.name in ('fig4', 'alignment'), stage.name
    lines = list(plans.plan(graph, targets, {}, tmp_path, 100))
    commands = [line for line in lines if line.startswith('python ')]
    assert len(commands) == len(stages) and not any('{' in command for command in commands)
    total = sum(costs[stage.name].hours(100) for stage in stages)
    assert re.match(rf'# Total: {len(stages)} stages, {total:,.0f} GPU hours', lines[-1])
    facemae = costs['facemae.0']
    assert facemae.flops == pytest.approx(4_200_000 * (200 * 6e9 + 2 * 1e9))
    assert facemae.disk == pytest.approx(10_000_000 * 4 * 3 * 3 + 4_200_000 * 4136)


def test_options_reach_the_places_that_they_name(monkeypatch, repository):
    monkeypatch.chdir(repository)
    graph, _, targets = everything(gpus=2, synthetic=True)
    recipes = {stage.name: stage.recipe() for stage in needed(graph.stages, targets)}  # an unknown option raises

    def loss(name):
        return recipes[name]['model']['head']['loss']

    def dataset(name, loader='train_dataloader'):
        return recipes[name][loader]['dataset']

    def mask(name, loader='train_dataloader'):
        return next(step for step in dataset(name, loader)['pipeline'] if step['type'] == 'FaceMask')

    assert loss('facemae.0')['beta'] == 1 and loss('facemae.rm_weight=0.1.0')['beta'] == 0.1
    assert loss('facemae.im_weight=0.0.0')['im_weight'] == 0 and loss('facemae.mse_weight=1.0.0')['mse_weight'] == 1
    assert loss('facemae.0')['phi']['checkpoint'] == '{phi}' and loss('facemae.0')['cache'] == '{out}/phi_features'
    assert mask('facemae.mask_ratio=0.3.0')['mask_ratio'] == 0.3 and mask('facemae.mask_regions=eyes.0')['regions'] == [
        'eyes'
    ]
    assert mask('facemae.1')['seed'] == 1 == recipes['facemae.1']['randomness']['seed']
    assert dataset('facemae.0')['subset'] == dataset('mae.w.0')['subset'] == dict(part=0, of=10)
    assert dataset('facemae.train_c.0')['subset'] is None and dataset('facemae.train_c.0')['source'] == '{casia}'
    assert dataset('facemae.train_sub2.0')['subset'] == dict(part=1, of=10)
    assert 'facemae.train_sub1.0' not in recipes  # that tenth is the recipe's own
    assert recipes['facemae.0']['optim_wrapper']['accumulative_counts'] == 4  # 2 GPUs in place of 8
    assert recipes['r50.original.s0']['optim_wrapper']['accumulative_counts'] == 2  # in place of 4

    release = 'release.facemae.0.deploy_sub2.m0'
    assert dataset(release, 'test_dataloader')['subset'] == dict(part=1, of=10)
    assert dataset('release.facemae.0.m0', 'test_dataloader')['subset'] is None
    assert mask('release.facemae.0.mask_ratio=0.9.m0', 'test_dataloader')['mask_ratio'] == 0.9
    assert mask('release.facemae.0.m1', 'test_dataloader')['seed'] == 1
    assert mask('release.facemae.0.m1', 'test_dataloader')['secret'] is None
    assert recipes['release.mae.w.0.paste_visible=True.m0']['model']['paste_visible'] is True
    assert dataset('r50.w.s0')['subset'] == dict(part=0, of=10)
    assert recipes['r50.w.s0']['model']['head']['num_classes'] == 205_991
    assert recipes['verify.r50.original.s0']['test_evaluator']['answers'] == '{out}/answers.csv'
    sets = dataset('verify.r50.original.s0', 'test_dataloader')['sets']
    assert {name: pairs['source'] for name, pairs in sets.items()} == {
        name: f'{{{name}}}' for name in ('lfw', 'cfp_fp', 'agedb_30')
    }
    audits = [recipe for name, recipe in recipes.items() if name.startswith('audit.')]
    assert audits and all(recipe['attackers']['embedder']['embedder']['checkpoint'] == '{phi}' for recipe in audits)


def test_a_release_reads_its_part_with_masks_of_the_seed(monkeypatch, repository, tmp_path):
    monkeypatch.chdir(repository)
    graph = PaperSize()
    recipe = graph.stages[graph.release(graph.facemae(0), 3, 'deploy_sub2')].recipe()
    faces = write_faces(tmp_path / 'faces', identities=30, images=1)
    part = DATASETS.build(recipe['test_dataloader']['dataset'] | dict(source=str(faces)))
    assert part.test_mode and 0 < len(part) < 30
    assert part[0]['data_samples'].mask.sum() == 147
    counted = count_parts(dict(webface=faces, casia=tmp_path / 'absent'))
    assert counted['webface', 1] == Size(len(part), len(part)) and ('casia', None) not in counted
    assert PaperSize(sizes=counted).size('deploy_sub2') == Size(len(part), len(part))


def test_only_numbers_of_gpus_that_make_the_papers_batch():
    with pytest.raises(ValueError, match='3 GPUs do not share the batch of 8 × 256. Take 1, 2, 4 or 8'):
        PaperSize(gpus=3)


def test_claims_are_read_off_the_papers_rows():
    """Rows that this scale has not count as not run."""
    graph, tables, _ = everything(synthetic=True)
    assert 'n64' not in tables['table6'].rows and 'synface' not in tables['table1'].rows
    assert tables['table1'].rows['facemae'].paper == (99.23, 90.80, 90.25)
    assert tables['table1'].rows['synthetic'].paper == (88.98, 76.23, 72.17)

    class Empty(Measures):
        def numbers(self, name):
            return None

    evidence = Evidence(Empty(None), tables, list(graph.judges()))
    for claim in CLAIMS:
        assert {verdict.verdict for verdict in claim.check(evidence)} == {NOT_RUN}


def run_tool(repository, monkeypatch, *words):
    spec = importlib.util.spec_from_file_location('tools_reproduce', repository / 'tools' / 'reproduce.py')
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    monkeypatch.chdir(repository)
    monkeypatch.setattr(sys, 'argv', ['tools/reproduce.py', *words])
    with pytest.raises(SystemExit) as ended:
        tool.main()
        sys.exit(0)
    return ended.value.code


def test_a_command_that_another_keeps_away_writes_no_page(monkeypatch, repository, tmp_path, capsys):
    def lock(store):
        raise FileExistsError('Another process is at work.')

    monkeypatch.setattr('facemae_mm.reproduction.store.Store.lock', lock)
    (tmp_path / 'pairs.txt').touch()
    words = ['table1', '--lfw', str(tmp_path), '--pairs', str(tmp_path / 'pairs.txt'), '--results']
    assert run_tool(repository, monkeypatch, *words, str(tmp_path / 'results')) == 2
    assert 'Another process is at work' in capsys.readouterr().err and not (tmp_path / 'results').exists()


def test_an_embedder_is_not_called_as_a_stage_is(monkeypatch, repository, tmp_path, capsys):
    (tmp_path / 'pairs.txt').touch()
    words = ['table1', '--list', '--lfw', str(tmp_path), '--pairs', str(tmp_path / 'pairs.txt'), '--unseen']
    assert run_tool(repository, monkeypatch, *words, f'start={tmp_path}') == 2
    assert '--unseen start=…: a stage is called start.' in capsys.readouterr().err
    assert run_tool(repository, monkeypatch, *words, f'out={tmp_path}') == 2
    assert 'and none of out, own' in capsys.readouterr().err


def test_a_page_shows_runs_of_other_commands_too(monkeypatch, repository, tmp_path):
    """A table that is run with `--seeds 1` hides no run of the others."""
    shown = []

    def write_page(folder, store, graph, tables, command):
        shown.append({len(row.runs) for table in tables.values() for row in table.rows.values()})

    monkeypatch.setattr('facemae_mm.reproduction.page.write_page', write_page)
    (tmp_path / 'pairs.txt').touch()
    words = ['table3', '--page', '--lfw', str(tmp_path), '--pairs', str(tmp_path / 'pairs.txt'), '--seeds']
    for seeds in '15':
        assert run_tool(repository, monkeypatch, *words, seeds) == 0
    assert shown == [{3}, {5}]


def test_missing_sources_are_named_behind_the_plan(monkeypatch, repository, few_operations, capsys, tmp_path):
    words = ['table6', '--scale', 'paper', '--casia', str(tmp_path), '--cache', str(tmp_path / 'cache')]
    write_faces(tmp_path, identities=2, images=2)
    assert run_tool(repository, monkeypatch, *words, '--list') == 0
    listed = capsys.readouterr().out
    assert f'deploy_faces={tmp_path}' in listed and 'casia: 2 people, 4 faces (counted)' in listed
    missing = listed.partition('# Missing:')[2]
    assert all(option in missing for option in ('--webface', '--phi', '--bins lfw=', '--bins agedb_30='))
    assert '--casia' not in missing and 'http' not in listed
    assert run_tool(repository, monkeypatch, *words) == 2
    said = capsys.readouterr()
    assert said.out == listed
    assert said.err.startswith('reproduce.py: 5 sources are missing: give --webface') and said.err.count('\n') == 1


@pytest.mark.parametrize(
    ('words', 'reason'),
    [
        (['table1'], 'needs --lfw FOLDER and --pairs FILE'),
        (['table1', '--lfw', 'a', '--pairs', 'b', '--gpus', '4'], '--gpus is for --scale paper, not mini'),
        (['table1', '--scale', 'paper', '--lfw', 'a'], '--lfw is for --scale mini, not paper'),
        (['table1', '--lfw', 'a', '--pairs', 'b', '--bins', 'lfw=c'], 'each name once, of cfp_fp, agedb_30'),
    ],
)
def test_options_of_the_other_scale_are_refused(monkeypatch, repository, capsys, words, reason):
    assert run_tool(repository, monkeypatch, *words) == 2
    assert reason in capsys.readouterr().err


def test_operations_of_a_small_mae_are_those_counted_by_hand(repository):
    options = {name: value for name, value in SMALL_FACEMAE.items() if 'phi' not in name}
    recipe = small_recipe(repository, 'mae_vitb_webface', **options)

    def layer(tokens, dims):  # qkv, projection and MLP; products of attention
        return tokens * 12 * dims**2 + 2 * tokens**2 * dims

    patches, kept, pixels, wide, narrow = 196, 49, 3 * 16**2, 192, 16
    embedding = patches * pixels * wide
    encoder, decoder = 12 * layer(kept + 1, wide), layer(patches + 1, narrow)
    ends = (kept + 1) * wide * narrow + (patches + 1) * narrow * pixels
    forward = 2 * (embedding + encoder + decoder + ends)
    assert count_prediction(recipe) == pytest.approx(forward, rel=0.02)
    counted = count_training(recipe)
    assert counted.step == pytest.approx(3 * forward - 2 * embedding, rel=0.02)  # images get no gradient
    assert counted.originals == 0


@pytest.mark.filterwarnings('ignore:FaceEmbedder. IResNet has no checkpoint')
def test_operations_of_phi_and_of_grouped_convolutions(repository):
    options = {name: value for name, value in SMALL_FACEMAE.items() if 'phi' not in name}
    mae = count_training(small_recipe(repository, 'mae_vitb_webface', **options))
    facemae = count_training(small_recipe(repository, 'facemae_vitb_webface', **SMALL_FACEMAE))
    assert facemae.originals > 0 and facemae.parameters == mae.parameters
    # φ(reconstruction) forward, and back to the face alone
    assert facemae.step - mae.step == pytest.approx(2 * facemae.originals, rel=0.02)
    recipe = small_recipe(repository, 'arcface_mbf_casia', num_classes=10)
    assert count_training(recipe).step == pytest.approx(3 * count_prediction(recipe) / 2, rel=0.05)  # tests flip
