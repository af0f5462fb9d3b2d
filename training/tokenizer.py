"""The tokenizer: byte-pair merges under which each word of the captions is one token."""

from __future__ import annotations

from collections import Counter

from transformers import CLIPTokenizer

from DeepCache.judge.captions import BACKGROUNDS, COLOURS, RELATIONS, SHAPES, SIZES, TEXTURES, THIRD_PLACES

MAX_LENGTH = 32
_WORD_END = "</w>"


def words() -> list[str]:
    """Every word (and the comma) that captions use, in alphabetical order."""
    phrases = [*COLOURS, *SHAPES, *SIZES[::2], *TEXTURES[1:], *RELATIONS, *THIRD_PLACES]
    return sorted(set(" ".join([*phrases, *BACKGROUNDS, "a an with ,"]).split()))


def _byte_symbols() -> list[str]:
    """The printable stand-ins of the 256 bytes, as byte-level tokenizers use them."""
    kept = [*range(33, 127), *range(161, 173), *range(174, 256)]
    moved = [byte for byte in range(256) if byte not in kept]
    return [chr(code) for code in kept] + [chr(256 + index) for index in range(len(moved))]


def learn_merges(corpus: list[str]) -> list[tuple[str, str]]:
    """Byte-pair merges, the commonest pair first, until each word is one symbol."""
    spelled = [[*word[:-1], word[-1] + _WORD_END] for word in corpus]
    merges: list[tuple[str, str]] = []
    while any(len(word) > 1 for word in spelled):
        pairs = Counter(pair for word in spelled for pair in zip(word, word[1:], strict=False))
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        spelled = [_merge(word, best) for word in spelled]
    return merges


def _merge(word: list[str], pair: tuple[str, str]) -> list[str]:
    """The word with each occurrence of the pair made one symbol."""
    merged: list[str] = []
    index = 0
    while index < len(word):
        if tuple(word[index : index + 2]) == pair:
            merged.append(pair[0] + pair[1])
            index += 2
        else:
            merged.append(word[index])
            index += 1
    return merged


def build_tokenizer() -> CLIPTokenizer:
    """A stock CLIP tokenizer with the small vocabulary."""
    merges = learn_merges(words())
    symbols = _byte_symbols()
    tokens = symbols + [symbol + _WORD_END for symbol in symbols]
    tokens += [left + right for left, right in merges]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: index for index, token in enumerate(dict.fromkeys(tokens))}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=MAX_LENGTH)
