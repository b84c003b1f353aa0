"""Log bodies -> templates.

Variable parts are masked by regular expressions inside polars, and Drain runs over the *sorted distinct* masked
bodies only: some thousand strings instead of some hundred thousand lines, and a result that depends neither on
the order of lines nor on how they were split over workers (Drain itself depends on the order it sees).
"""

import polars as pl
from drain3 import TemplateMiner
from drain3.template_miner_config import TemplateMinerConfig

# Applied in this order. Long bodies carry serialised objects: what stands in braces, brackets or quotes is data.
MASKS = (
    (r"[0-9a-fA-F]{8}-(?:[0-9a-fA-F]{4}-){3}[0-9a-fA-F]{12}", "<id>"),
    (r"\b(?:req-)?[0-9a-f]{16,}\b", "<id>"),
    (r"\b\d{1,3}(?:\.\d{1,3}){3}(?::\d+)?\b", "<ip>"),
    (r"\b0x[0-9a-fA-F]+\b", "<num>"),
    *3 * ((r"\{[^{}]*\}", "<data>"), (r"\([^()]*=[^()]*\)", "<data>")),  # objects, three levels deep
    (r"\[[^\[\]]*,[^\[\]]*\]", "<data>"),  # lists
    (r"[{(][^{}()]*=[^{}()]*$", "<data>"),  # an object that was cut off
    (r'"[^"]*"', "<text>"),
    (r"'[^']*'", "<text>"),
    (r"\b\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d[.,\d]*Z?\b", "<time>"),
    (r"\b[\w-]{40,}\b", "<id>"),  # tokens, hashes
    (r"#(\d+)", "#L${1}"),  # `logger#line` names a place in the code: the next mask must leave it
    (r"\b\d+(?:[.,:]\d+)*\b", "<num>"),
)
MAX_BODY = 600  # characters that are looked at; stack traces and dumps say what they are in their first line
UNSEEN = -1


def mask(body: pl.Expr) -> pl.Expr:
    """The first line of a log body with its variable parts replaced."""
    body = body.str.extract(r"^\s*([^\n]*)").str.slice(0, MAX_BODY)
    for pattern, name in MASKS:
        body = body.str.replace_all(pattern, name)
    return body


class Templates:
    """Templates fitted on the distinct masked bodies of training time.

    Attributes:
        texts: the templates; their positions are the template numbers.
    """

    def __init__(self, masked_bodies):
        """Args: masked_bodies: any iterable of masked bodies; order and repeats do not matter."""
        config = TemplateMinerConfig()
        config.drain_sim_th = 0.6
        config.drain_depth = 5
        config.drain_max_children = 200
        config.parametrize_numeric_tokens = True
        config.profiling_enabled = False
        self._miner = TemplateMiner(None, config)
        for body in sorted(set(masked_bodies) - {""}):
            self._miner.add_log_message(body)
        clusters = sorted(self._miner.drain.clusters, key=lambda c: c.cluster_id)
        self._number = {cluster.cluster_id: i for i, cluster in enumerate(clusters)}
        self.texts = [cluster.get_template() for cluster in clusters]

    def assign(self, masked_bodies: pl.Series) -> pl.Series:
        """Template number of each masked body, UNSEEN (-1) where none fits. Int32, same length."""
        numbers = {}
        for body in masked_bodies.unique().to_list():
            cluster = self._miner.match(body) if body else None
            numbers[body] = UNSEEN if cluster is None else self._number[cluster.cluster_id]
        return masked_bodies.replace_strict(numbers, default=UNSEEN, return_dtype=pl.Int32)
