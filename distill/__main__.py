"""``python -m distill`` is ``distill``: the form torchrun and srun start."""

import sys

from distill.cli import main

sys.exit(main())
