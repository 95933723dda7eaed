"""Faces as samples: subsets, epochs, workers."""

import hashlib
import random
import shutil

import cv2
import numpy as np
import pytest
import torch
from mmengine.dataset import ConcatDataset
from test_face_sources import image_record, write_folder, write_rec
from tiny import write_faces
from torch.utils.data import DataLoader

from facemae_mm.datasets import FaceMask, FaceRecordDataset, open_faces
from facemae_mm.datasets.masking import mask_faces
from facemae_mm.datasets.preparation import FacePreparer, prepare_faces

NAMES = [f'person {i}' for i in range(40)]


@pytest.fixture
def folder(tmp_path):
    return write_folder(tmp_path / 'faces', *(f'{name}/{i}.jpg' for name in NAMES for i in range(3)))


def part_by_hash(name, of):
    return int(hashlib.sha256(name.encode()).hexdigest(), 16) % of


def test_sample(folder):
    dataset = FaceRecordDataset(str(folder), role='query')
    dataset.set_epoch(5)
    assert dataset[4] == dict(
        img_bytes=b'person 1/1.jpg',
        img_path=f'{folder}:person 1/1',
        img_key='person 1/1',
        gt_label=1,
        identity='person 1',
        role='query',
        epoch=5,
        sample_idx=4,
    )
    assert type(dataset[4]['gt_label']) is int and type(dataset[4]['epoch']) is int
    assert len(dataset) == 120 and FaceRecordDataset(folder)[0]['role'] is None


def test_parts_are_disjoint_cover_everything_and_follow_the_hash(folder):
    parts = [FaceRecordDataset(folder, subset=dict(part=i, of=3)) for i in range(3)]
    for i, part in enumerate(parts):
        assert part.identities == sorted(n for n in NAMES if part_by_hash(n, 3) == i)
        infos = [part.get_data_info(j) for j in range(len(part))]
        assert [x['identity'] for x in infos] == [part.identities[x['gt_label']] for x in infos]
        assert sorted({x['gt_label'] for x in infos}) == list(range(len(part.identities)))
    keys = [p.get_data_info(j)['img_key'] for p in parts for j in range(len(p))]
    assert sorted(keys) == open_faces(folder).keys


def test_parts_of_genuine_identities(shared):
    path = shared / 'formats/lfw60_mxnet/train.rec'
    parts = [FaceRecordDataset(path, subset=dict(part=i, of=10)) for i in range(10)]
    assert sum(map(len, parts)) == 600
    assert sorted((n for p in parts for n in p.identities), key=int) == [str(i) for i in range(60)]
    assert all(len(p) == 10 * len(p.identities) for p in parts)
    whole = FaceRecordDataset(path, subset=dict(part=0, of=1))
    assert whole.identities == FaceRecordDataset(path).identities


def test_parts_of_images(folder):
    parts = [FaceRecordDataset(folder, images=dict(part=i, of=2)) for i in range(2)]
    keys = [[p.get_data_info(j)['img_key'] for j in range(len(p))] for p in parts]
    assert keys[1] == [k for k in open_faces(folder).keys if part_by_hash(k, 2) == 1]
    assert sorted(keys[0] + keys[1]) == open_faces(folder).keys
    assert parts[0].labels.max() == len(parts[0].identities) - 1


def test_named_identities(folder, tmp_path):
    dataset = FaceRecordDataset(folder, subset=dict(identities=['person 9', 'person 17']))
    assert dataset.identities == ['person 17', 'person 9'] and len(dataset) == 6
    assert dataset.labels.tolist() == [0, 0, 0, 1, 1, 1]
    path = write_rec(tmp_path, {i: image_record(float(i)) for i in range(12)})
    assert FaceRecordDataset(path, subset=dict(identities=[10, '9'])).identities == ['9', '10']


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(subset=dict(identities=['person 1', 'nobody'])), "no identity 'nobody'. Name those"),
        (dict(subset=dict(identities=list('abcde'))), "'a', 'b', 'c' and 2 more"),
        (dict(subset=dict(identities=[])), 'leaves no image'),
        (dict(subset=dict(part=0, of=100_000)), 'leaves no image.*40 identities'),
        (dict(subset=dict(part=3, of=3)), "{'part': 3, 'of': 3} is no part"),
        (dict(subset=dict(part=-1, of=3)), 'is no part'),
        (dict(subset=dict(part=0)), 'is no part'),
        (dict(subset=dict(part=0.0, of=2)), 'is no part'),
        (dict(images=dict(keys=['x'])), 'images={.*} is no part'),
        (dict(role='probe'), "role 'probe' is unknown. Choose 'query'"),
    ],
)
def test_option_errors(folder, options, message):
    with pytest.raises(ValueError, match=message):
        FaceRecordDataset(folder, **options)


def test_index_out_of_range(folder):
    dataset = FaceRecordDataset(folder)
    for index in (-1, 120):
        with pytest.raises(IndexError):
            dataset[index]


def test_a_bin_is_refused(shared):
    with pytest.raises(ValueError, match=r'small_lfw\.bin knows no identities.*VerificationPairs'):
        FaceRecordDataset(shared / 'formats/small_lfw.bin')


def drop_first(sample):
    return None if sample['sample_idx'] == 0 else sample


def test_a_dropped_face_is_replaced_in_training_and_an_error_in_testing(folder):
    assert FaceRecordDataset(folder, pipeline=[drop_first])[0]['sample_idx'] > 0
    with pytest.raises(ValueError, match=r'returned None for .*person 0/0'):
        FaceRecordDataset(folder, pipeline=[drop_first], test_mode=True)[0]
    with pytest.raises(ValueError, match='returned None'):
        FaceRecordDataset(folder, pipeline=[lambda sample: None])[0]


def test_queries_and_a_gallery_of_another_size_concatenate(folder):
    options = dict(type='mmpretrain.FaceRecordDataset', source=str(folder))
    query = dict(options, role='query', subset=dict(identities=['person 3']))
    both = ConcatDataset([query, dict(options, role='gallery')])
    assert len(both) == 123
    assert [both[i]['role'] for i in (0, 2, 3, 122)] == ['query'] * 2 + ['gallery'] * 2


def test_pipeline_of_a_recipe(shared):
    pipeline = [
        dict(type='LoadFace', size=112),
        dict(type='FaceMask', patch_size=8, mask_ratio=0.75, seed=0),
        dict(type='PackInputs', meta_keys=('img_key', 'identity', 'role')),
    ]
    dataset = FaceRecordDataset(shared / 'formats/lfw60_mxnet/train.rec', pipeline, role='gallery')
    sample = dataset[25]
    pixels = cv2.imdecode(np.frombuffer(dataset.source.read(25), np.uint8), cv2.IMREAD_COLOR)
    assert (sample['inputs'].numpy() == pixels.transpose(2, 0, 1)).all()  # BGR
    data_sample = sample['data_samples']
    assert (data_sample.img_key, data_sample.identity, data_sample.role) == ('26', '2', 'gallery')
    assert data_sample.gt_label.tolist() == [2] and data_sample.mask.shape == (196,)


def as_list(samples):
    return [(s['img_key'], s['img'].tobytes() if 'img' in s else s['img_bytes'], s['epoch']) for s in samples]


@pytest.mark.parametrize('start', ['fork', 'spawn'])
def test_persistent_workers_read_every_kind_of_set_and_see_the_epoch(tmp_path, start):
    images = {i: image_record(float(i // 3), bytes([i]) * (7000 * i + 1)) for i in range(12)}
    plain = FaceRecordDataset(write_rec(tmp_path, images))
    faces = write_faces(tmp_path / 'faces', identities=2, images=3)
    shutil.make_archive(str(tmp_path / 'zipped'), 'zip', faces)
    prepare_faces(FacePreparer(open_faces(faces), None), tmp_path / 'packed', records=True, workers=0)
    mask_faces(open_faces(faces), tmp_path / 'masked', FaceMask(fresh=False, seed=0), workers=0)
    (faces / 'person_1/1.png').write_bytes(b'')
    sets = [plain] + [
        FaceRecordDataset(tmp_path / name, [dict(type='LoadFace')], on_error='skip')
        for name in ('zipped.zip', 'packed/train.rec', 'masked', 'faces')
    ]
    expected = [[(str(i), bytes([i]) * (7000 * i + 1)) for i in range(12)]]
    expected += [[face[:2] for face in as_list(map(dataset.__getitem__, range(6)))] for dataset in sets[1:4]]
    assert expected[1] == expected[2] and len({data for _, data in expected[3]}) == 6
    expected += [[face for face in expected[1] if face[0] != 'person_1/1']]
    loader = DataLoader(
        torch.utils.data.ConcatDataset(sets),
        batch_size=2,
        num_workers=2,
        collate_fn=as_list,
        persistent_workers=True,
        multiprocessing_context=start,
    )
    for round_, epoch in enumerate((0, 7, 8), 1):
        for dataset in sets:
            dataset.set_epoch(epoch)
        read = [sample for batch in loader for sample in batch]
        assert read[:30] == [(*face, epoch) for faces_of in expected[:4] for face in faces_of]
        replaced = read.pop(34)
        assert read[30:] == [(*face, epoch) for face in expected[4]] and replaced in read[30:]
        assert sets[4].num_skipped >= round_  # the face that is drawn in its place may be the same
    assert [dataset.num_skipped for dataset in sets[:4]] == [0] * 4


def test_faces_that_cannot_be_read(tmp_path):
    faces = write_faces(tmp_path / 'faces', identities=1, images=4)
    options = dict(source=faces, pipeline=[dict(type='LoadFace')])
    (faces / 'person_0/2.png').write_bytes(b'')
    with pytest.raises(ValueError, match='person_0/2 is empty'):
        FaceRecordDataset(**options)[2]
    dataset = FaceRecordDataset(**options, on_error='skip')
    taken = []
    with pytest.warns(UserWarning, match='person_0/2 is empty.*Further ones are counted only') as warned:
        for epoch in range(30):
            dataset.set_epoch(epoch, seed=5)
            taken.append(dataset[2]['img_key'])
            assert dataset[2]['img_key'] == taken[-1] and dataset[0]['img_key'] == 'person_0/0'
    assert set(taken) == {f'person_0/{i}' for i in (0, 1, 3)}
    assert dataset.num_skipped >= 60 and len(warned) == 1
    for path in faces.glob('*/*.png'):
        path.write_bytes(b'no image')
    with pytest.raises(ValueError, match=r'person_0/\d \(8 bytes\) is damaged'):
        dataset[0]
    for wrong in (dict(on_error='ignore'), dict(on_error='skip', test_mode=True)):
        with pytest.raises(ValueError, match="Choose 'raise' or, in training, 'skip'"):
            FaceRecordDataset(**options, **wrong)


def test_labels_are_an_array_for_samplers(folder):
    dataset = FaceRecordDataset(folder)
    assert dataset.labels.dtype == np.int64 and np.bincount(dataset.labels).tolist() == [3] * 40


def draw_everything(sample):
    drawn = random.random(), np.random.rand(), float(torch.rand(()))
    return dict(img_key=sample['img_key'], img_bytes=repr(drawn).encode(), epoch=sample['epoch'])


def test_what_a_pipeline_draws_depends_on_seed_epoch_and_image_alone(folder):
    dataset, part = (FaceRecordDataset(folder, [draw_everything], images=i) for i in (None, dict(part=0, of=2)))
    for other in (dataset, part):
        other.set_epoch(3, seed=7)
    random.seed(0), np.random.seed(0), torch.manual_seed(0)
    drawn = {sample['img_key']: sample['img_bytes'] for sample in (dataset[i] for i in range(len(dataset)))}
    after = random.random(), np.random.rand(), float(torch.rand(()))
    random.seed(0), np.random.seed(0), torch.manual_seed(0)
    assert after == (random.random(), np.random.rand(), float(torch.rand(())))  # nobody else noticed
    assert len(set(drawn.values())) == 120
    assert all(drawn[sample['img_key']] == sample['img_bytes'] for sample in (part[i] for i in range(len(part))))
    for workers in (1, 3):
        loader = DataLoader(dataset, 7, shuffle=True, num_workers=workers, collate_fn=as_list)
        assert {key: data for batch in loader for key, data, _ in batch} == drawn
    for epoch, seed in ((4, 7), (3, 8)):
        dataset.set_epoch(epoch, seed)
        assert not set(drawn.values()) & {dataset[i]['img_bytes'] for i in range(120)}
    test = FaceRecordDataset(folder, [draw_everything], test_mode=True)
    assert test[0] is not None and test[0]['img_bytes'] != test[0]['img_bytes']  # generators left alone


def test_flips_are_fair(folder):
    dataset = FaceRecordDataset(folder, [lambda sample: np.random.rand() < 0.5])
    flips = []
    for epoch in range(20):
        dataset.set_epoch(epoch)
        flips.append([bool(dataset[i]) for i in range(120)])
    flips = np.array(flips)
    assert abs(flips.mean() - 0.5) < 4 * 0.5 / flips.size**0.5
    assert abs(np.corrcoef(flips)[np.triu_indices(20, 1)].mean()) < 4 / (190 * 120) ** 0.5
