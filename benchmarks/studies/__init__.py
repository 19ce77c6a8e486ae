"""Claims about distillation, in miniature: one file per study, run by ``python -m benchmarks.studies NAME FOLDER``."""
