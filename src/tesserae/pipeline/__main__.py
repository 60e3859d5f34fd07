"""Runs a notebook as a stage: python -m tesserae.pipeline notebooks/02_train_vqgan.ipynb --target image"""

import sys

from tesserae.pipeline.runner import main

sys.exit(main())
