"""Knowledge files: readable rules about a system, turned into the fixed rows K of the knowledge memory. No jax.

A file is YAML::

    system: OpenStack
    rules:
      - name: message-queue-outage
        kind: dependency                    # one of RULE_KINDS
        components: [rabbitmq, "nova-*"]    # service names; * and ? as in file names
        signals: {logs: [AMQP server unreachable], metrics: [], traces: [rpc latency]}
        description: One or two sentences.

Row of a rule = hashed words of its text ++ mean Laplacian position of its components ++ which modalities it names.
"""

import dataclasses
import fnmatch
import hashlib
import logging
import re
from pathlib import Path
from typing import NamedTuple

import numpy as np
import yaml

from data_prep.errors import InputError

MODALITIES = ("logs", "metrics", "traces")
RULE_KINDS = ("resource", "dependency", "software", "network", "configuration", "workload", "normal")
TEXT_DIM, POSITION_DIM = 96, 8
KEY_DIM = TEXT_DIM + POSITION_DIM + len(MODALITIES)
MOST_BYTES = 256 << 10  # of a file that people write and read; YAML takes seconds and much memory for some megabytes
FIELDS = {"name": str, "kind": str, "components": list, "signals": dict, "description": str}

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Knowledge:
    """The fixed side of the knowledge memory."""

    names: tuple[str, ...]  # [P], of rules; then 'topology: <service>' and 'free-<i>'
    keys: np.ndarray  # [P, KEY_DIM] float32


def load(path, service_names, service_position, num_prototypes: int, variant: str = "rules") -> Knowledge:
    """Exactly `num_prototypes` prototypes: the file's rules, then services spread over the topology, then free ones.

    Args:
        path: of a knowledge file; empty: no rules.
        variant: 'rules', or an ablation: 'shuffled' deals the rules' words, components and modalities out among the
            rules anew; 'random' replaces all rows by random ones of the same norm; 'none' has no rules.
        service_names: of the system; components of rules that match none are warned about and have no position.
        service_position: [services, 8], Laplacian positions.

    Raises:
        InputError: the file is missing, is not valid, or has more rules than prototypes.
    """
    rules = read_rules(path) if path and variant != "none" else []
    if len(rules) > num_prototypes:
        raise InputError(
            f"{path} has {len(rules)} rules, config.model.num_prototypes is {num_prototypes}; "
            "raise the number or remove rules"
        )
    service_position = np.asarray(service_position, np.float32).reshape(len(service_names), POSITION_DIM)
    names, keys = [], []
    contents = [_content(rule) for rule in rules]
    for rule, content in zip(rules, _shuffled(contents) if variant == "shuffled" else contents, strict=True):
        where = f"{path}: rule {rule['name']}"
        names.append(rule["name"])
        position = _position(content.components, service_names, service_position, where)
        keys.append(_row(content.words, position, content.modalities))
    for i in _spread(service_position)[: num_prototypes - len(names)]:
        names.append(f"topology: {service_names[i]}")
        keys.append(_row(_words(names[-1]), service_position[i], [False] * len(MODALITIES)))
    for i in range(num_prototypes - len(names)):
        names.append(f"free-{i}")
        keys.append(_row(_words(names[-1]), np.zeros(POSITION_DIM), [False] * len(MODALITIES)))
    keys = np.stack(keys).astype(np.float32)
    if variant == "random":
        rows = np.random.default_rng(0).normal(size=keys.shape)
        keys = rows * (np.linalg.norm(keys, axis=1) / np.linalg.norm(rows, axis=1))[:, None]
    return Knowledge(tuple(names), keys.astype(np.float32))


def read_rules(path) -> list[dict]:
    """The rules of a knowledge file, checked (see the module's docstring for their form)."""
    path = Path(path)
    try:
        with open(path, "rb") as file:
            text = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); set config.knowledge.path") from None
    if len(text) > MOST_BYTES:
        raise InputError(f"{path} has more than {MOST_BYTES >> 10} KiB, too much for rules; name a knowledge file")
    try:
        content = yaml.load(text.decode("utf-8"), _PlainLoader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # numbers and dates that are none are ValueErrors
        reason = " ".join(str(error).split())
        raise InputError(f"{path} is not valid YAML ({reason}); correct it") from None
    if not isinstance(content, dict) or not isinstance(content.get("rules"), list) or not content["rules"]:
        raise InputError(f"{path} has no list called 'rules'; see configs/knowledge/openstack.yaml for the form")
    seen = set()
    for number, rule in enumerate(content["rules"], start=1):
        _check_rule(rule, f"{path}, rule {number}")
        if rule["name"] in seen:
            raise InputError(f"{path}, rule {number}: the name {rule['name']!r} is used twice; rename one")
        seen.add(rule["name"])
    return content["rules"]


class _PlainLoader(yaml.SafeLoader):
    """Nothing but texts, numbers, lists and mappings, each written out: aliases can make a small file huge."""

    def compose_node(self, parent, index):
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark
            raise yaml.composer.ComposerError(None, None, "aliases (*name) are not read: write the text out", mark)
        return super().compose_node(parent, index)


def _check_rule(rule, where: str) -> None:
    if not isinstance(rule, dict):
        raise InputError(f"{where}: is not a mapping with the keys {', '.join(FIELDS)}")
    if isinstance(rule.get("name"), str):
        where = f"{where} ({rule['name']})"
    for field, kind in FIELDS.items():
        if not isinstance(rule.get(field), kind) or (kind is str and not rule[field].strip()):
            form = {str: "text", list: "a list", dict: "a mapping"}[kind]
            raise InputError(f"{where}: {field!r} is missing or is not {form}")
    unknown = set(rule) - set(FIELDS)
    if unknown:
        raise InputError(f"{where}: unknown key {sorted(map(str, unknown))[0]!r}; known are {', '.join(FIELDS)}")
    if rule["kind"] not in RULE_KINDS:
        raise InputError(f"{where}: kind {rule['kind']!r} is not one of {', '.join(RULE_KINDS)}")
    for modality, signals in rule["signals"].items():
        if modality not in MODALITIES:
            raise InputError(f"{where}: signals of {modality!r}; known modalities are {', '.join(MODALITIES)}")
        _check_texts(signals, f"{where}: signals.{modality}")
    _check_texts(rule["components"], f"{where}: components")


def _check_texts(values, where: str) -> None:
    if not isinstance(values, list) or not all(isinstance(v, str) and v for v in values):
        raise InputError(f"{where} must be a list of texts (put texts with special characters in quotes)")


class _Content(NamedTuple):
    """What a rule's row is made of."""

    words: list[str]
    components: list[str]
    modalities: list[bool]  # which of MODALITIES it names


def _content(rule) -> _Content:
    text = [rule["name"], rule["kind"], *rule["components"], rule["description"]]
    text += [signal for m in MODALITIES for signal in rule["signals"].get(m, [])]
    return _Content(_words(" ".join(text)), rule["components"], [bool(rule["signals"].get(m)) for m in MODALITIES])


def _shuffled(contents: list[_Content]) -> list[_Content]:
    """The same words, components and modalities dealt out anew; a row keeps its number of words."""
    rng = np.random.default_rng(0)
    pool = [word for content in contents for word in content.words]
    pool = [pool[i] for i in rng.permutation(len(pool))]
    out = []
    for content, i, j in zip(contents, _derangement(len(contents), rng), _derangement(len(contents), rng), strict=True):
        out.append(_Content([pool.pop() for _ in content.words], contents[i].components, contents[j].modalities))
    return out


def _derangement(count: int, rng) -> np.ndarray:
    """A permutation that leaves nothing in its place (where there are two or more)."""
    order, out = rng.permutation(count), np.zeros(count, int)
    out[order] = np.roll(order, 1)
    return out


def _position(components, service_names, service_position, where: str) -> np.ndarray:
    """Mean Laplacian position of the services that the components match."""
    matched = set()
    for pattern in components:
        hits = {i for i, name in enumerate(service_names) if fnmatch.fnmatchcase(name.split("@")[0], pattern)}
        if not hits:
            log.warning("%s names %r, which this system does not have", where, pattern)
        matched |= hits
    return service_position[sorted(matched)].mean(axis=0) if matched else np.zeros(POSITION_DIM)


def _spread(positions: np.ndarray) -> list[int]:
    """All services, each the farthest from those before it: the first few cover the topology."""
    if not len(positions):
        return []
    distance = np.linalg.norm(positions - positions.mean(axis=0), axis=1)
    order = []
    while len(order) < len(positions):
        distance[order] = -1
        order.append(int(np.argmax(distance)))
        distance = np.minimum(distance, np.linalg.norm(positions - positions[order[-1]], axis=1))
    return order


def _row(words: list[str], position: np.ndarray, flags: list[bool]) -> np.ndarray:
    """Three parts, each of norm at most 1."""
    position = position / max(1.0, float(np.linalg.norm(position)))
    return np.concatenate([_hashed(words), position, np.array(flags, np.float32) / np.sqrt(len(flags))])


def _words(text: str) -> list[str]:
    return re.findall(r"[a-z0-9]+", text.lower())


def _hashed(words: list[str]) -> np.ndarray:
    """Words and neighbouring pairs of words, each a fixed random sign pattern; unit norm."""
    total = np.zeros(TEXT_DIM)
    for token in words + [f"{a} {b}" for a, b in zip(words, words[1:], strict=False)]:
        digest = hashlib.blake2b(token.encode(), digest_size=TEXT_DIM // 8).digest()
        total += np.unpackbits(np.frombuffer(digest, np.uint8)) * 2.0 - 1.0
    norm = np.linalg.norm(total)
    return total / norm if norm > 0 else total
