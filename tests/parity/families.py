"""Tiny encoders of random weights, one per family, made by transformers with tokenizers of their
own kind. Needs PyTorch, transformers, sentencepiece.
"""

import json
from pathlib import Path

import sentencepiece
import tokenizers
import torch
import transformers
from tokenizers import decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer, WordPieceTrainer

WORDS = 500  # tokens of a vocabulary
SIZES = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4}
BERT_LIKE = SIZES | {"intermediate_size": 48}


def configs(vocab_size: int) -> dict[str, transformers.PretrainedConfig]:
    """Returns the config of each family."""
    positions = {"max_position_embeddings": 66, "vocab_size": vocab_size}
    common = BERT_LIKE | positions
    roberta = common | {"type_vocab_size": 1, "pad_token_id": 1, "layer_norm_eps": 1e-5}
    return {
        "bert": transformers.BertConfig(**common),
        "dpr": transformers.DPRConfig(**common, projection_dim=24),
        "roberta": transformers.RobertaConfig(**roberta),
        "xlm-roberta": transformers.XLMRobertaConfig(**roberta),
        "mpnet": transformers.MPNetConfig(**common, pad_token_id=1),
        "distilbert": transformers.DistilBertConfig(
            dim=32, n_layers=3, n_heads=4, hidden_dim=48, **positions
        ),
        # a window of 4 tokens to either side, so that texts are longer than it
        "modernbert": transformers.ModernBertConfig(
            **(common | {"num_hidden_layers": 4}),
            local_attention=8,
            pad_token_id=3,
            bos_token_id=1,
            eos_token_id=2,
            cls_token_id=1,
            sep_token_id=2,
        ),
    }


def model(config: transformers.PretrainedConfig, seed: int) -> torch.nn.Module:
    """Returns an encoder of random weights that float16 holds exactly, no two of them alike."""
    torch.manual_seed(seed)
    if config.model_type == "dpr":
        made = transformers.DPRContextEncoder(config)
    else:
        made = transformers.AutoModel.from_config(config, attn_implementation="eager")
    with torch.no_grad():
        for name, value in made.named_parameters():
            is_norm = "norm" in name.lower() and name.endswith("weight")
            value.copy_(torch.randn_like(value) * 0.3 + float(is_norm))
            value.copy_(value.half())  # not the whole module: it has tables of angles
    return made.eval()


def write_tokenizer(kind: str, folder: Path, texts: list[str]) -> int:
    """Trains a tokenizer of a family's kind, writes all its files, and returns its size."""
    folder.mkdir(parents=True, exist_ok=True)
    if kind in ("bert", "dpr", "distilbert", "mpnet"):
        made = _word_piece(kind, folder, texts)
    elif kind == "roberta":
        made = _byte_level(folder, texts)
    elif kind == "xlm-roberta":
        made = _unigram(folder, texts)
    else:
        made = _modern(folder, texts)
    made.model_max_length = 64
    made.save_pretrained(folder)
    return len(made)


def _word_piece(kind: str, folder: Path, texts: list[str]) -> transformers.PreTrainedTokenizerBase:
    backend = tokenizers.Tokenizer(tokenizers.models.WordPiece(unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer()
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    if kind == "mpnet":
        special = ["<s>", "<pad>", "</s>", "[UNK]", "<mask>"]
    trainer = WordPieceTrainer(vocab_size=WORDS, special_tokens=special, limit_alphabet=200)
    backend.train_from_iterator(texts, trainer)
    vocabulary = sorted(backend.get_vocab().items(), key=lambda item: item[1])
    lines = "".join(f"{token}\n" for token, _ in vocabulary)
    (folder / "vocab.txt").write_text(lines, encoding="utf-8")
    names = {
        "mpnet": transformers.MPNetTokenizer,
        "dpr": transformers.DPRContextEncoderTokenizer,
    }
    return names.get(kind, transformers.BertTokenizer).from_pretrained(folder)


def _byte_level(folder: Path, texts: list[str]) -> transformers.PreTrainedTokenizerBase:
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    _train_bpe(texts, special).model.save(str(folder))
    return transformers.RobertaTokenizer.from_pretrained(folder)


def _modern(folder: Path, texts: list[str]) -> transformers.PreTrainedTokenizerBase:
    special = ["[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]"]
    backend = _train_bpe(texts, special)
    backend.normalizer = normalizers.NFC()
    ends = [(token, special.index(token)) for token in ("[CLS]", "[SEP]")]
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=ends
    )
    backend.model.save(str(folder))
    names = {f"{name}_token": f"[{name.upper()}]" for name in ("unk", "cls", "sep", "pad", "mask")}
    return transformers.PreTrainedTokenizerFast(tokenizer_object=backend, **names)


def _train_bpe(texts: list[str], special: list[str]) -> tokenizers.Tokenizer:
    backend = tokenizers.Tokenizer(BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = BpeTrainer(vocab_size=WORDS, special_tokens=special, initial_alphabet=alphabet)
    backend.train_from_iterator(texts, trainer)
    return backend


def _unigram(folder: Path, texts: list[str]) -> transformers.PreTrainedTokenizerBase:
    prefix = folder / "sentencepiece.bpe"
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_prefix=str(prefix),
        vocab_size=WORDS,
        character_coverage=0.999,
        model_type="unigram",
        minloglevel=2,
        num_threads=1,
    )
    prefix.with_name("sentencepiece.bpe.vocab").unlink()
    return transformers.XLMRobertaTokenizer.from_pretrained(folder)


def write_modules(folder: Path, pooling: str, **lengths: int) -> None:
    """Writes the files by which sentence-transformers opens a folder."""
    package = "sentence_transformers.models"
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"{package}.{kind}"}
        for i, (path, kind) in enumerate([("", "Transformer"), ("1_Pooling", "Pooling")])
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir(exist_ok=True)
    said = {"word_embedding_dimension": 32, f"pooling_mode_{pooling}": True}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(said))
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 64} | lengths))
    (folder / "config_sentence_transformers.json").write_text('{"similarity_fn_name": "dot"}')
