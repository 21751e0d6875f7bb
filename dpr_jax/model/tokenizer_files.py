"""Opens the tokenizer of a model folder: tokenizer.json, or the older files where it is missing.

What tokenizer_config.json says holds for both, as in transformers 5: the settings of a tokenizer's
class stand above what tokenizer.json repeats of them.
"""

import base64
from pathlib import Path
from typing import Any, NamedTuple

import tokenizers
from tokenizers import AddedToken, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE, Unigram, WordPiece

from dpr_jax.errors import InputError
from dpr_jax.model.folder_json import load_json
from dpr_jax.model.sentencepiece_file import read_pieces

FAST = "tokenizer.json"
SAVE = "save the tokenizer as tokenizer.json (transformers: save_pretrained)"
BERT_SPECIAL = {
    f"{name}_token": f"[{name.upper()}]" for name in ("unk", "sep", "cls", "pad", "mask")
}
ROBERTA_SPECIAL = {
    "bos_token": "<s>",
    "eos_token": "</s>",
    "unk_token": "<unk>",
    "sep_token": "</s>",
    "cls_token": "<s>",
    "pad_token": "<pad>",
    "mask_token": "<mask>",
}


class Kind(NamedTuple):
    """A class of tokenizers.

    Attributes:
      model: its type in tokenizer.json.
      files: what it is made of where tokenizer.json is missing.
      special: its special tokens, unless tokenizer_config.json names others.
      always_lowercase: whether texts are lower-cased even where do_lower_case is false, which
        transformers 5 writes for DPR and does not read.
    """

    model: str
    files: tuple[str, ...]
    special: dict[str, str]
    always_lowercase: bool = False


BERT = Kind("WordPiece", ("vocab.txt",), BERT_SPECIAL)
DPR = BERT._replace(always_lowercase=True)
MPNET = Kind("WordPiece", ("vocab.txt",), ROBERTA_SPECIAL | {"unk_token": "[UNK]"})
ROBERTA = Kind("BPE", ("vocab.json", "merges.txt"), ROBERTA_SPECIAL)
XLM_ROBERTA = Kind("Unigram", ("sentencepiece.bpe.model",), ROBERTA_SPECIAL)
MODERNBERT = Kind("BPE", ("vocab.json", "merges.txt"), BERT_SPECIAL)
CLASSES = {  # of transformers, which may end in Fast
    "BertTokenizer": BERT,
    "DistilBertTokenizer": BERT,
    "DPRQuestionEncoderTokenizer": DPR,
    "DPRContextEncoderTokenizer": DPR,
    "DPRReaderTokenizer": DPR,
    "MPNetTokenizer": MPNET,
    "RobertaTokenizer": ROBERTA,
    "XLMRobertaTokenizer": XLM_ROBERTA,
}
BY_MODEL_TYPE = {  # where no class is named
    "mpnet": MPNET,
    "roberta": ROBERTA,
    "xlm-roberta": XLM_ROBERTA,
    "modernbert": MODERNBERT,
}


def open_backend(folder: Path) -> tokenizers.Tokenizer:
    """Returns the library's tokenizer as the folder's files describe it.

    Raises:
      InputError: a file is missing, or says what cannot be done; the message names it.
    """
    said = load_json(folder / "tokenizer_config.json")
    config = load_json(folder / "config.json")
    named = said.get("tokenizer_class") or config.get("tokenizer_class")
    kind = CLASSES.get(str(named).removesuffix("Fast"))
    if named is None or (kind is None and config.get("model_type") == "modernbert"):
        kind = BY_MODEL_TYPE.get(str(config.get("model_type")), BERT)
    if (folder / FAST).exists():
        content = load_json(folder / FAST)
        backend = tokenizers.Tokenizer.from_file(str(folder / FAST))
        model = (content.get("model") or {}).get("type") or type(backend.model).__name__
        known = {token["content"] for token in content.get("added_tokens") or []}
        if kind and kind is not MODERNBERT and model == kind.model:
            _set_rules(backend, kind, said, _charsmap(content))
            _add_tokens(folder, backend, kind, said, known)
        else:
            _add_tokens(folder, backend, None, said, known)
        return backend
    missing = [name for name in kind.files if not (folder / name).exists()] if kind else []
    if kind is None:
        raise InputError(
            f"{folder} has tokenizer_class {named!r}, which can only be read from {FAST}; {SAVE}"
        )
    if missing:
        raise InputError(
            f"{folder} holds no {FAST} and no {' or '.join(missing)}; copy the tokenizer's files"
            " there"
        )
    return _from_older_files(folder, kind, said)


def _from_older_files(folder: Path, kind: Kind, said: dict[str, Any]) -> tokenizers.Tokenizer:
    paths = [str(folder / name) for name in kind.files]
    special = {name: _token(said.get(name) or usual) for name, usual in kind.special.items()}
    charsmap = None
    if kind.model == "WordPiece":
        model = WordPiece.from_file(paths[0], unk_token=special["unk_token"].content)
    elif kind.model == "BPE":
        model = BPE.from_file(*paths)
    else:
        pieces, charsmap = read_pieces(folder / kind.files[0])
        order = ("bos_token", "pad_token", "eos_token", "unk_token")
        vocabulary = [(special[name].content, 0.0) for name in order]
        vocabulary += [*pieces[3:], (special["mask_token"].content, 0.0)]
        model = Unigram(vocabulary, unk_id=3, byte_fallback=False)
    backend = tokenizers.Tokenizer(model)
    _set_rules(backend, kind, said, charsmap)
    _add_tokens(folder, backend, kind, said, set())
    _set_ends(backend, kind, said, special)
    return backend


def _set_rules(
    backend: tokenizers.Tokenizer, kind: Kind, said: dict[str, Any], charsmap: bytes | None
) -> None:
    """Sets how a text is normalized and cut into words, by the class and its settings."""
    if kind.model == "WordPiece":
        backend.normalizer = normalizers.BertNormalizer(
            lowercase=kind.always_lowercase or said.get("do_lower_case", True),
            strip_accents=said.get("strip_accents"),
            handle_chinese_chars=said.get("tokenize_chinese_chars", True),
        )
        backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        return
    prefix = said.get("add_prefix_space", kind is XLM_ROBERTA)
    if kind is XLM_ROBERTA:
        rules = [normalizers.Precompiled(charsmap)] if charsmap else []
        split = pre_tokenizers.Metaspace("▁", prepend_scheme="always" if prefix else "never")
        backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), split])
    else:
        rules = [normalizers.NFC()] if kind is MODERNBERT else []
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    backend.normalizer = normalizers.Sequence(rules)


def _set_ends(
    backend: tokenizers.Tokenizer, kind: Kind, said: dict[str, Any], special: dict[str, AddedToken]
) -> None:
    """Sets which special tokens stand around a text and around a pair."""

    def end(name: str) -> tuple[str, int]:
        text = special[name].content
        return text, backend.token_to_id(text)

    if kind in (BERT, DPR, MODERNBERT):
        backend.post_processor = processors.BertProcessing(end("sep_token"), end("cls_token"))
    elif kind is XLM_ROBERTA:
        (first, _), (last, _) = ends = end("bos_token"), end("eos_token")
        backend.post_processor = processors.TemplateProcessing(
            single=[first, "$A", last],
            pair=[first, "$A", last, last, "$B", last],
            special_tokens=[*ends],
        )
    else:
        backend.post_processor = processors.RobertaProcessing(
            end("sep_token"),
            end("cls_token"),
            add_prefix_space=bool(said.get("add_prefix_space", False)),
        )


def _charsmap(content: dict[str, Any]) -> bytes | None:
    """Returns SentencePiece's table of characters in a tokenizer.json."""
    rules = content.get("normalizer") or {}
    for rule in rules.get("normalizers", [rules]):
        if rule.get("type") == "Precompiled" and rule.get("precompiled_charsmap"):
            return base64.b64decode(rule["precompiled_charsmap"])
    return None


def _add_tokens(
    folder: Path,
    backend: tokenizers.Tokenizer,
    kind: Kind | None,
    said: dict[str, Any],
    known: set[str],
) -> None:
    """Adds the added and special tokens that the files name.

    Args:
      folder: of the model.
      backend: gets them.
      kind: of the tokenizer; None where tokenizer.json alone says it, with its special tokens.
      said: what tokenizer_config.json holds.
      known: added tokens that are there already, with the flags that they keep.
    """
    said = {**said}
    said.setdefault("extra_special_tokens", said.pop("additional_special_tokens", None))
    decoder = said.get("added_tokens_decoder")
    if decoder is None and not known:  # the older files, which the newer ones replace
        said |= load_json(folder / "special_tokens_map.json")
    usual = kind.special if kind else {}
    names = usual or [name for name in said if name in (*BERT_SPECIAL, *ROBERTA_SPECIAL)]
    texts = {name: said.get(name) or usual.get(name) for name in names}
    named = {name: _token(text) for name, text in texts.items() if text}
    if kind is MPNET and isinstance(texts["mask_token"], str):
        named["mask_token"] = AddedToken(texts["mask_token"], lstrip=True, special=True)
    extra = said.get("extra_special_tokens") or []
    extra = [*map(_token, extra.values() if isinstance(extra, dict) else extra)]
    special = [*named.values(), *extra, *map(_token, said.get("additional_special_tokens") or [])]
    added: dict[int, AddedToken] = {}
    if decoder is not None:
        added = {int(id_): _token(token, special=False) for id_, token in decoder.items()}
    elif not known:
        all_special = {token.content for token in (*named.values(), *extra)}
        ids = load_json(folder / "added_tokens.json")
        added = {int(id_): _token(text, special=text in all_special) for text, id_ in ids.items()}
    backend.add_tokens([added[id_] for id_ in sorted(added)])
    known = known | {token.content for token in added.values()}  # again, they would lose flags
    backend.add_tokens([token for token in special if token.content not in known])
    for id_, token in added.items():
        if (found := backend.token_to_id(token.content)) != id_:
            raise InputError(
                f"{folder}: its added token {token.content!r} has id {id_}, but the vocabulary"
                f" gives it {found}; {SAVE}"
            )


def _token(said: str | dict[str, Any], *, special: bool = True) -> AddedToken:
    """Returns a token with the flags it comes with, by which it is found in texts."""
    if isinstance(said, str):
        return AddedToken(said, special=special)
    names = ("normalized", "single_word", "lstrip", "rstrip", "special")
    flags = {"special": special} | {name: said[name] for name in names if name in said}
    return AddedToken(said["content"], **flags)
