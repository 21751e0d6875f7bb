"""Natural questions with a small encoder: configs/study_squad.py on other data, for the studies in docs/results.md.

Data:      data/nq_natural/ in DPR's layout (passages.tsv, train.json, dev.json, test.qa.csv, test.qrels); not in this repository.
Model:     as for configs/study_squad.py.
Command:   dpr pipeline configs/study_nq_natural.py --workdir runs/study_nq_natural
Hardware:  two CPU cores, 5 GB of memory.
Time:      not run yet.
Expected:  not run yet; docs/results.md has the studies on SQuAD.
"""

import dataclasses
from pathlib import Path

from dpr_jax import config_file
from dpr_jax.config import DataConfig

config = dataclasses.replace(
    config_file.load(Path(__file__).with_name("study_squad.py")),
    name="study_nq_natural",
    data=DataConfig(
        passages="data/nq_natural/passages.tsv",
        train="data/nq_natural/train.json",
        dev="data/nq_natural/dev.json",
        test="data/nq_natural/test.qa.csv",
        test_qrels="data/nq_natural/test.qrels",
        max_train_questions=3200,
    ),
)
