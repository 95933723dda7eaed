"""The table of five points beside a set."""

import shutil

import numpy as np
import pytest
from test_face_sources import image_record, write_folder, write_keys, write_rec

from facemae_mm.datasets import FaceRecordDataset, open_faces
from facemae_mm.datasets.landmarks import read_landmarks

HEADER = 'path,lex,ley,rex,rey,nx,ny,lmx,lmy,rmx,rmy\n'
POINTS = '1,2,3,4,5,6,7,8,9,10.5'


@pytest.fixture
def folder(tmp_path):
    return write_folder(tmp_path / 'faces', 'a/1.jpg', 'a/2.v2.jpg', 'b/1.png')


@pytest.mark.parametrize('place', ['faces/landmarks5.csv', 'faces.landmarks5.csv'])
def test_rows_find_their_face_with_any_extension_or_none(folder, place):
    rows = f'b/1.png,{POINTS}\na/2.v2,{POINTS.replace("10.5", "99")}\ngone/1.jpg,{POINTS}\n'
    (folder.parent / place).write_text(HEADER + rows)
    points = read_landmarks(open_faces(folder))
    assert points.shape == (3, 5, 2) and points.dtype == np.float32
    assert np.isnan(points[0]).all() and points[1, 4].tolist() == [9, 99]
    assert points[2].tolist() == [[1, 2], [3, 4], [5, 6], [7, 8], [9, 10.5]]


def test_a_set_without_a_table(folder):
    assert read_landmarks(open_faces(folder)) is None


def test_tables_of_records_and_archives(folder, tmp_path):
    shutil.make_archive(str(tmp_path / 'zipped'), 'zip', folder)
    for place in ('zipped.landmarks5.csv', 'zipped.zip.landmarks5.csv'):
        (tmp_path / place).write_text(f'{HEADER}a/1.jpg,{POINTS}\n')
        points = read_landmarks(open_faces(tmp_path / 'zipped.zip'))
        assert points[0, 4].tolist() == [9, 10.5] and np.isnan(points[1:]).all()
        (tmp_path / place).unlink()
    (tmp_path / 'set').mkdir()
    path = write_rec(tmp_path / 'set', {i: image_record(0.0, b'x') for i in (2, 7, 10)})
    (tmp_path / 'set/landmarks5.csv').write_text(f'{HEADER}10,{POINTS}\n7,{POINTS.replace("10.5", "11")}\n')
    write_keys(tmp_path / 'set/keys.csv', '2,10', '7,bob/2', '10,bob/3')  # the table follows the set's own keys
    points = read_landmarks(open_faces(path))
    assert np.isnan(points[0]).all() and points[1:, 4].tolist() == [[9, 11], [9, 10.5]]


def test_genuine_table(shared):
    points = read_landmarks(open_faces(shared / 'faces/lfw112'))
    assert points.shape == (13233, 5, 2) and np.isfinite(points).all()
    assert np.abs(points.mean(0) - [[38.3, 51.7], [73.5, 51.5], [56, 71.7], [41.5, 92.4], [70.7, 92.2]]).max() < 3


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('', 'first line is not path,lex'),
        ('path,x,y\na/1,1,2\n', 'first line is not path,lex'),
        (f'{HEADER}a/1,1,2,3\n', 'line 2 does not hold a path and ten finite numbers'),
        (f'{HEADER}a/1,{POINTS}\na/1.jpg,{POINTS}\n', r'line 3: a/1\.jpg stands there twice'),
        (f'{HEADER}a/1,{POINTS.replace("10.5", "nan")}\n', 'line 2 does not hold'),
        (f'{HEADER}a/1,{POINTS.replace("10.5", "1e9")}\n', 'line 2 does not hold'),
        (f'{HEADER}a/1,{POINTS.replace("10.5", "ten")}\n', 'line 2 does not hold'),
        (f'{HEADER}faces/a/1.jpg,{POINTS}\nx,{POINTS}\n', 'none of its 2 paths is one of the set, such as a/1'),
    ],
)
def test_table_errors(folder, text, message):
    (folder / 'landmarks5.csv').write_text(text)
    with pytest.raises(ValueError, match=rf'landmarks5\.csv is no table of landmarks: .*{message}.*Write it anew'):
        read_landmarks(open_faces(folder))


def test_samples_carry_landmarks_where_a_transform_needs_them(folder):
    (folder / 'landmarks5.csv').write_text(f'{HEADER}b/1,{POINTS}\n')
    masked = FaceRecordDataset(folder, [dict(type='FaceMask', seed=0, regions='eyes')])
    assert masked.get_data_info(2)['landmarks'][4].tolist() == [9, 10.5]
    assert masked.get_data_info(0)['landmarks'] is None
    assert 'landmarks' not in FaceRecordDataset(folder, [dict(type='FaceMask', seed=0)]).get_data_info(2)
