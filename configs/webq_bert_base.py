r"""The paper's setting on WebQuestions: configs/nq_bert_base.py with other questions.

Data:      DPR's own files in data/webq/ (its `data.retriever.webq-train`,
           `webq-dev`, `data.retriever.qas.webq-test`), and its Wikipedia in
           data/nq/; the hard negatives in them are BM25's.
Command:   dpr pipeline configs/webq_bert_base.py --workdir runs/webq_bert_base
           and in parts as in nq_bert_base.py; docs/launch.md has machines and prices.
Hardware:  as nq_bert_base.py.
Time:      not measured by us; 1,933 updates against the 18,400 of Natural Questions.
Expected:  top-20/top-100 answer accuracy on the 2,032 test questions: 73.2/81.4 in the paper
           (BM25 55.0/71.1; 62.4/75.5 where it was run again). Not yet run by us.

A small set: 100 epochs, as in the paper, and a tenth of the updates to warm up, which is our
choice (the paper's 1,237 are two thirds of them).
"""

import dataclasses

from nq_bert_base import config as nq

config = dataclasses.replace(
    nq,
    data=dataclasses.replace(
        nq.data,
        train="data/webq/biencoder-webquestions-train.json.gz",
        dev="data/webq/biencoder-webquestions-dev.json.gz",
        test="data/webq/webquestions-test.qa.csv",
    ),
    train=dataclasses.replace(
        nq.train,
        total_steps=1933,
        warmup=193 / 1933,
        validate_every_steps=241,
        checkpoint_every_steps=241,
    ),
)
