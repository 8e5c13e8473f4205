"""What the editor shows of the nodes, in English and in Chinese."""

import json
import re
from collections.abc import Iterator

import pytest

from consistent_video.modules.clip_model.host.family import FAMILIES
from consistent_video.modules.files.host import register_folder
from consistent_video.nodes import NODES
from consistent_video.scripts.environment import ROOT
from consistent_video.scripts.host import Host
from consistent_video.scripts.texts import LOCALES, MODELS, english, families_table, list_inputs

FILES = ("main.json", "nodeDefs.json")
CHINESE = re.compile(r"[\u4e00-\u9fff]")
NUMBER = re.compile(r"[0-9]+(?:\.[0-9]+)?(?:e-?[0-9]+)?")
CODE = re.compile(r"[\w.-]*[_/][\w./-]*\w|\b[\w-]*[A-Z][\w-]*[A-Z][\w-]*|--\w+")  # ids, paths, names like LoRA
HELP = ROOT / "web" / "docs"
SPAN = re.compile(r"`[^`\n]+`")
PICTURE = re.compile(r"!\[.*\]\((\S+)\)")
Key = tuple[str, ...]


def read(language: str) -> dict:
    return {name: json.loads((LOCALES / language / name).read_text(encoding="utf-8")) for name in FILES}


def flatten(texts: dict, key: Key = ()) -> Iterator[tuple[Key, str]]:
    """Yield each text with the keys that lead to it."""
    for name, value in texts.items():
        if isinstance(value, dict):
            yield from flatten(value, (*key, name))
        else:
            yield (*key, name), value


def read_help(name: str) -> list[str]:
    """Return a node's help page in English and in Chinese."""
    return [(HELP / page).read_text(encoding="utf-8") for page in (f"{name}.md", f"{name}/zh.md")]


def outline(page: str) -> list[int]:
    """Return the number of bars, between which cells are, in each heading, row and formula of a help page."""
    return [line.count("|") for line in page.splitlines() if line.startswith(("#", "|", "    "))]


def split_titles(text: str, titles: dict[str, str]) -> tuple[set[str], str]:
    """Return the Chinese titles of the nodes that an English text names, and the text without them."""
    anything = re.compile("|".join(rf"\b{re.escape(title)}\b" for title in sorted(titles, key=len, reverse=True)))
    return {titles[title] for title in anything.findall(text)}, anything.sub(" ", text)


@pytest.fixture(scope="module")
def infos() -> list[dict]:
    register_folder()
    return [node.GET_NODE_INFO_V1() for node in NODES]


@pytest.fixture(scope="module")
def pairs() -> dict[Key, tuple[str, str]]:
    """English and Chinese of each text."""
    chinese = dict(flatten(read("zh")))
    return {key: (text, chinese[key]) for key, text in flatten(read("en"))}


@pytest.fixture(scope="module")
def titles(pairs: dict[Key, tuple[str, str]]) -> dict[str, str]:
    """The Chinese title of each node by its English one."""
    return {text: translated for key, (text, translated) in pairs.items() if key[-1] == "display_name"}


def is_prose(key: Key) -> bool:
    return key[-1] in ("description", "tooltip")


def test_english_is_what_the_nodes_say(infos: list[dict]) -> None:
    assert read("en") == english(infos), "run python scripts/build_locales.py"


def test_the_table_of_models_is_what_the_code_says() -> None:
    assert families_table(FAMILIES) in MODELS.read_text(encoding="utf-8"), "run python scripts/build_locales.py"


def test_chinese_has_every_text_and_none_that_is_gone(infos: list[dict]) -> None:
    wanted, found = set(dict(flatten(english(infos)))), set(dict(flatten(read("zh"))))
    assert not wanted - found and not found - wanted


def test_no_text_has_marks_of_the_editors_message_format() -> None:
    texts = [text for language in ("en", "zh") for _, text in flatten(read(language))]
    assert not [text for text in texts if set(text) & set("@{}|")]


def test_chinese_is_chinese_and_all_there(pairs: dict) -> None:
    assert not [text for _, text in pairs.values() if not CHINESE.search(text) or text != text.strip()]
    assert not [text for key, (_, text) in pairs.items() if is_prose(key) and not text.endswith("。")]


def test_the_same_english_has_the_same_chinese(pairs: dict) -> None:
    found: dict[str, set[str]] = {}
    for key, (text, translated) in pairs.items():
        if is_prose(key):
            found.setdefault(text, set()).add(translated)
    assert not [texts for texts in found.values() if len(texts) > 1]


def test_chinese_keeps_the_numbers(pairs: dict) -> None:
    changed = [pair for pair in pairs.values() if len({tuple(sorted(NUMBER.findall(text))) for text in pair}) > 1]
    assert not changed


def test_chinese_calls_nodes_as_their_titles_do_and_keeps_other_names(pairs: dict, titles: dict[str, str]) -> None:
    lost = []
    for key, (text, translated) in pairs.items():
        if is_prose(key):
            found, rest = split_titles(text, titles)
            lost += [(key, name) for name in sorted(found | set(CODE.findall(rest))) if name not in translated]
    assert not lost


def test_chinese_help_says_all_that_the_english_says(titles: dict[str, str]) -> None:
    """Tables, formulas, numbers, code and pictures are the English page's, and nodes have their titles."""
    lost = []
    for name in read("zh")["nodeDefs.json"]:
        english, chinese = read_help(name)
        for pattern in (NUMBER, SPAN, PICTURE):
            lost += [(name, found) for found in set(pattern.findall(english)) ^ set(pattern.findall(chinese))]
        if outline(english) != outline(chinese):
            lost.append((name, "headings, formulas, rows and cells"))
        lost += [(name, title) for title in split_titles(SPAN.sub(" ", english), titles)[0] if title not in chinese]
    assert not lost


def test_chinese_help_calls_inputs_and_outputs_by_both_their_names() -> None:
    lost = []
    for name, texts in read("zh")["nodeDefs.json"].items():
        chinese = read_help(name)[1]
        results = read("en")["nodeDefs.json"][name].get("outputs", {})
        shown = [(text["name"], key) for key, text in texts.get("inputs", {}).items()]
        shown += [(text["name"], results[index]["name"]) for index, text in texts.get("outputs", {}).items()]
        lost += [(name, key) for label, key in shown if f"{label} `{key}`" not in chinese]
        if not chinese.startswith(f"# {texts['display_name']}\n"):
            lost.append((name, "heading"))
    assert not lost


def test_chinese_explains_the_same_choices(infos: list[dict], pairs: dict) -> None:
    """Choices are shown as they are, so that a tooltip must name them so."""
    lost = []
    for info in infos:
        for key, (_, options) in list_inputs(info).items():
            text, translated = pairs["nodeDefs.json", info["name"], "inputs", key, "tooltip"]
            for choice in map(str, options.get("options") or ()):
                if re.search(rf"(^|[.,] ){re.escape(choice)}( =|:)", text, re.IGNORECASE) and choice not in translated:
                    lost.append((info["name"], key, choice))
    assert not lost


def test_the_host_serves_both_languages(host: Host) -> None:
    served = host.get("i18n")
    for language in ("en", "zh"):
        main, nodes = (read(language)[name] for name in FILES)
        assert main.items() <= served[language].items() and served[language]["nodeDefs"] == nodes
