"""How byte-level tokenizers of GGUF files cut a text into words, by the names in tokenizer.ggml.pre.

Source: llama.cpp's src/llama-vocab.cpp (b11434), which has the names, what each cuts at and what else it
implies. Where that has, beside an approximation for C++, the expression of the model's own tokenizer.json, it
is that one here.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from tokenizers import Regex, normalizers, pre_tokenizers

# What most of the expressions are made of.
_SUFFIX = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORD = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_SIGNS = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
_LINES, _SPACES = r"\s*[\r\n]+", r"\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"


_GPT2_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"


def _any_of(*alternatives: str) -> str:
    return "|".join(alternatives)


def _cased(digits: str, suffix: str = "", upper: str = _UPPER, lower: str = _LOWER, ends: str = "/") -> str:
    """Words end where upper-case letters follow lower-case ones."""
    before = r"[^\r\n\p{L}\p{N}]?"
    words = (f"{before}{upper}*{lower}+{suffix}", f"{before}{upper}+{lower}*{suffix}")
    return _any_of(*words, digits, rf" ?[^\s\p{{L}}\p{{N}}]+[\r\n{ends}]*", _LINES, _SPACES)


def _characters(ranges: str) -> str:
    """A class of characters, from code points and ranges of them in hexadecimal."""
    bounds = (item.split("-") for item in ranges.split())
    return "".join("-".join(chr(int(bound, 16)) for bound in pair) for pair in bounds)


_LLAMA3 = _any_of(_SUFFIX, _WORD, r"\p{N}{1,3}", _SIGNS, _LINES, _SPACES)
_QWEN2 = _any_of(_SUFFIX, _WORD, r"\p{N}", _SIGNS, _LINES, _SPACES)
_GPT4O = _cased(r"\p{N}{1,3}", f"{_SUFFIX}?")
# The letters that have a case, of a version of Unicode that DeepSeek wrote down.
_CASED_LETTERS = _characters(
    "41-5a 61-7a b5 c0-d6 d8-f6 f8-1ba 1bc-1bf 1c4-293 295-2af 370-373 376 377 37b-37d 37f 386 388-38a 38c "
    "38e-3a1 3a3-3f5 3f7-481 48a-52f 531-556 10a0-10c5 13a0-13f5 13f8-13fd 1c90-1cba 1cbd-1cbf 1d00-1d2b "
    "1d6b-1d77 1d79-1d9a 1e00-1f15 1f18-1f1d 1f20-1f45 1f48-1f4d 1f50-1f57 1f59 1f5b 1f5d 1f5f-1f7d "
    "1f80-1fb4 1fb6-1fbc 1fbe 1fc2-1fc4 1fc6-1fcc 1fd0-1fd3 1fd6-1fdb 1fe0-1fec 1ff2-1ff4 1ff6-1ffc "
    "2102 2107 210a-2113 2115 2119-211d 2124 2126 2128 212a-212d 212f-2134 2139 213c-213f 2145-2149 "
    "214e 2183 2184 2c00-2c7b 2c7e-2ce4 2ceb-2cee 2cf2 2cf3 a640-a66d a680-a69b a722-a76f a771-a787 "
    "a78b-a78e ab70-abbf fb00-fb06 fb13-fb17 ff21-ff3a ff41-ff5a 10400-1044f 104b0-104d3 104d8-104fb "
    "10c80-10cb2 10cc0-10cf2 118a0-118df 1e900-1e943"
)
_DEEPSEEK_SIGNS = _characters("21-2f 3a-7e ff01-ff0f ff1a-ff5e 2018-201f 3000-3002")
_DEEPSEEK_CJK = f"[{_characters('4e00-9fa5 800-4e00 ac00-d7ff')}]+"
_CHINESE_AND_KANA = _characters("4e00-9fa5 3040-309f 30a0-30ff")
_ASIAN = _characters(
    "4e00-9fff 3400-4dbf f900-faff 3040-309f 30a0-30ff ff65-ff9f 2f00-2fdf e40-e7f e80-eff 1780-17ff "
    "1000-109f aa60-aa7f a9e0-a9ff ac00-d7af 1100-11ff"
)
_YOUTU_BLOCKS = _any_of(
    f"[{_characters('ac00-d7a3 3131-318e')}]+",
    f"[{_characters('ff01 2026 201c 201d 2018 2019 2014 ff1a ff1b ff0c 3001-303f fe30-fe4f')}]+",
    f"[{_characters('3105-312f')}]+",
    f"[{_CHINESE_AND_KANA}]+",
)
_SIGN_AND_WORD = (
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+",
    r"[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+",
)
_DEEPSEEK3 = _any_of(*_SIGN_AND_WORD, r" ?[\p{P}\p{S}]+[\r\n]*", _LINES, _SPACES)
_NOT_HAN = r"(?:(?!\p{Han})%s)"
_BLOOM = rf" ?[^(\s|.,!?{_characters('2026 3002 ff0c 3001 964 6d4 60c')})]+"
_JAIS_SPACES = _any_of(*(rf"\s{{{count}}}(?!\S)" for count in (512, 256, 128, 64, 32, 16, 8, 4)))


@dataclass(frozen=True, slots=True)
class Splitting:
    """How a text becomes words.

    Args:
        patterns: a text is cut at what the first one matches, each piece at what the second one matches, and
            so on; the pieces between matches are words, too.
        cuts_as_gpt2: pieces are cut as GPT-2 does it after that.
        composes: the text is brought into Unicode's normal form C first.
        ignores_merges: a word that is in the vocabulary is a token, whatever the merges make of it.
        adds_bos: what a file wants that does not say whether a prompt begins with bos.
    """

    patterns: tuple[str, ...] = ()
    cuts_as_gpt2: bool = False
    composes: bool = False
    ignores_merges: bool = False
    adds_bos: bool = False

    def pre_tokenizer(self) -> pre_tokenizers.PreTokenizer:
        """Return what does it, and spells the words in the bytes' letters."""
        splits = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in self.patterns]
        spelling = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=self.cuts_as_gpt2)
        return pre_tokenizers.Sequence([*splits, spelling])

    def normalizer(self) -> normalizers.Normalizer | None:
        """Return what a text goes through first, if there is anything."""
        return normalizers.NFC() if self.composes else None


_GPT2 = Splitting(cuts_as_gpt2=True)
_DIGITS_APART = Splitting((r"\p{N}",), cuts_as_gpt2=True)
_LLAMA_BPE = Splitting((_LLAMA3,), ignores_merges=True, adds_bos=True)
_LIKE_QWEN2 = Splitting((_QWEN2,))
_DEEPSEEK_V3 = Splitting((r"\p{N}{1,3}", f"[{_CHINESE_AND_KANA}]+", _DEEPSEEK3))
_LIKE_GPT4O = Splitting((_GPT4O,))
_LIKE_BLOOM = Splitting((_BLOOM,))
_TINY_AYA = Splitting((r"\d{1,3}(?=(?:\d{3})*\b)", _GPT4O))
_BAILING = Splitting(
    (
        _any_of(
            r"'(?i:[sdmt]|ll|ve|re)",
            r"[^\r\n\p{L}\p{N}]?+\p{L}+",
            r"\p{N}",
            r" ?[^\s\p{L}\p{N}]++[\r\n]*",
            r"\s*[\r\n]",
            _SPACES,
        ),
    )
)
_PUNCTUATION = r"[\p{P}\$\+<=>\^~\|%s]+"
DEFAULT = Splitting((_PUNCTUATION % "", _GPT2_WORDS, r"\p{N}+", r"[0-9][0-9][0-9]"))
_CHAMELEON = Splitting(
    (
        r"<sentinel:[0-9]+>",
        r"(IMGIMG)((A|B|C|D|E|F|G|H|I){1,4})Z",
        r"([\t\n]|    |  )",
        r"\p{N}",
        r"[\p{P}!-/:-@\[-`{-~]",
    ),
    cuts_as_gpt2=True,
    adds_bos=True,
)
_EXAONE_MOE = _any_of(
    _SUFFIX,
    r"[^\r\n\p{L}\p{N}]?(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+",
    r"\p{N}",
    r" ?[^\s\p{L}\p{N}]+[\r\n/]?",
    r"\s*[\r\n]",
    _SPACES,
)
_QWEN35 = _any_of(
    _SUFFIX,
    r"[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+",
    r"\p{N}",
    r" ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*",
    _LINES,
    _SPACES,
)
_KIMI_K2 = _any_of(
    r"\p{Han}+", _cased(r"\p{N}{1,3}", f"{_SUFFIX}?", _NOT_HAN % _UPPER, _NOT_HAN % _LOWER, ends="")
)
_SEED = _any_of(_SUFFIX, _WORD, r"\p{N}", r" ?[^\s\p{L}\p{N}\r\n]+", _LINES, _SPACES)
_SPARK = _any_of(*_SIGN_AND_WORD, r" ?[\p{P}\p{S}]+|[\r\n]", _SPACES)
_JAIS2 = _any_of(_SUFFIX, _WORD, r"\p{N}{1,3}", _SIGNS, _LINES, _JAIS_SPACES, r"\s{1,2}(?!\S)|\s{1}")
_MINICPM5 = _any_of(_SUFFIX, _WORD, r"\p{N}+", _SIGNS, _LINES, _SPACES)
_GROUPS: dict[Splitting, str] = {
    _GPT2: "gpt-2 phi-2 jina-es jina-de gigachat jina-v2-es jina-v2-de a.x-4.0 mellum modern-bert jina-v1-en "
    "jina-v2-code roberta-bpe jais exaone4 trillion granite-docling",
    replace(_GPT2, composes=True): "mpt olmo",  # their tokenizers are GPT-NeoX's
    _DIGITS_APART: "starcoder refact smollm codeshell exaone minerva-7b mellum2",
    replace(_DIGITS_APART, composes=True): "command-r",
    _LLAMA_BPE: "llama-bpe llama3 llama-v3 falcon3 falcon-h1 pixtral midm-2.0 lfm2 jina-v5-nano",
    # These files are those of Llama 3's tokenizer that add no bos (SmolLM 3).
    replace(_LLAMA_BPE, adds_bos=False): "smaug-bpe glm4 glm5",
    replace(_LLAMA_BPE, adds_bos=False, ignores_merges=False): "dbrx chatglm-bpe",  # dbrx is GPT-4's
    replace(_LIKE_QWEN2, composes=True): "qwen2",
    _LIKE_QWEN2: "deepseek-r1-qwen kormo f2llmv2 stablelm2 hunyuan solar-open megrez grok-2",
    Splitting((_QWEN35,), composes=True): "qwen35",
    Splitting((_cased(r"\p{N}"),), ignores_merges=True, adds_bos=True): "tekken",
    _LIKE_GPT4O: "gpt-4o llama4 kanana2 talkie minimax-m2",
    replace(_LIKE_GPT4O, ignores_merges=True): "granite-embed-multi-97m",
    _TINY_AYA: "tiny_aya cohere2moe",
    Splitting(
        (
            r"[\r\n]",
            rf"\s?[{_CASED_LETTERS}]+",
            rf"\s?[{_DEEPSEEK_SIGNS}]+",
            r"\s+$",
            _DEEPSEEK_CJK,
            r"\p{N}+",
        )
    ): "deepseek-llm",
    Splitting((r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _DEEPSEEK_CJK, r"\p{N}")): "deepseek-coder",
    _DEEPSEEK_V3: "deepseek-v3 hunyuan-dense joyai-llm hy_v4",
    Splitting((r"\p{N}{1,3}", f"[{_CHINESE_AND_KANA}]+", _SPARK, r"\p{N}")): "spark2_5",
    Splitting((_YOUTU_BLOCKS, _cased(r"\p{N}", f"{_SUFFIX}?")), ignores_merges=True): "youtu",
    Splitting((_PUNCTUATION % "`", _GPT2_WORDS, r"[0-9][0-9][0-9]")): "falcon",
    _LIKE_BLOOM: "poro-chat bloom gpt3-finnish",
    Splitting((_BLOOM, r"\p{N}")): "viking",
    _CHAMELEON: "chameleon",
    Splitting((_KIMI_K2,)): "kimi-k2",
    Splitting((r"\p{N}+", r"(?=(\d{3})+(?!\d))")): "superbpe",
    _BAILING: "bailingmoe bailingmoe2 llada-moe",
    Splitting((_SEED,)): "seed-coder",
    Splitting((_any_of(_WORD, r"\p{N}", _SIGNS, _LINES, _SPACES),)): "ufakzeka",
    Splitting((r"\p{N}{1,3}(?=(?:\p{N}{3})*(?!\p{N}))", f"[{_ASIAN}]+", _DEEPSEEK3)): "afmoe",
    Splitting((r"[^\n]+|[\n]+", _QWEN2)): "laguna",
    Splitting((_EXAONE_MOE,)): "exaone-moe",
    Splitting((r"\p{N}{1,3}", _MINICPM5), ignores_merges=True): "minicpm5",
    Splitting((_JAIS2,)): "jais-2",
    DEFAULT: "default",
}
SPLITTINGS = {name: splitting for splitting, names in _GROUPS.items() for name in names.split()}
# What llama.cpp knows besides: vocabularies that are spelt in characters and not in bytes.
NOT_BYTE_LEVEL = ("gemma4", "granite-embed-multi-311m", "mmbert", "sarvam-moe", "whitespace")
