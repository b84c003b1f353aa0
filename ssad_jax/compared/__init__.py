"""The systems that the paper compares itself with, in compact form on our windows (docs/compared.md)."""

from typing import NamedTuple

REPORTED = ("accuracy", "precision", "recall", "auroc")  # ACC, PRE, REC and AUC of the paper's Table 3


class CompactForm(NamedTuple):
    """How a detector of ours stands to the system that it is called after."""

    system: str  # and whose
    fidelity: str  # high | medium | low: how much of the system as it was published the compact form is
    adapted: str  # the largest change
    reported: tuple[float, ...] | None = None  # percent, as REPORTED has them, on other data


COMPACT = {
    "deeptralog_adapted": CompactForm(
        "DeepTraLog (Zhang et al., ICSE 2022)", "medium", "a graph is a window, not a trace",
        (91.24, 90.87, 90.31, 95.42),
    ),
    "logtracead_adapted": CompactForm(
        "LogTraceAD (Xie X. et al., CNCIT 2023)", "low", "detector and sizes: the full text was not at hand",
        (92.08, 91.56, 91.12, 96.03),
    ),
    "tracevae_adapted": CompactForm(
        "TraceVAE (Xie Z. et al., WWW 2023)", "medium",
        "windows are judged by their traces; narrower than published (high at the published widths)",
        (92.41, 92.05, 91.67, 96.28),
    ),
    "tracegra_adapted": CompactForm(
        "TraceGra (Chen et al., Computer Communications 2023)", "low", "sizes and decoder",
        (93.15, 92.74, 92.33, 96.91),
    ),
    "service_anomaly_adapted": CompactForm(
        "ServiceAnomaly (Panahandeh et al., JSS 2024)", "medium", "family of functions, weights",
        (93.68, 93.21, 92.89, 97.24),
    ),
    "logbert_adapted": CompactForm(
        "LogBERT (Guo et al., IJCNN 2021)", "high", "sequences are pieces of a window; a score without labels",
        (94.02, 93.66, 93.28, 97.53),
    ),
    "logelectra_adapted": CompactForm(
        "LogELECTRA (Yamanaka et al., arXiv 2402.10397)", "medium", "sizes, score of a line",
        (94.37, 94.05, 93.71, 97.86),
    ),
    "art_adapted": CompactForm("ART (Sun et al., ASE 2024)", "medium", "services in the place of instances"),
}  # fmt: skip
OURS = {"knowledge_ssl": (95.48, 95.12, 94.83, 98.44)}  # the paper's own row, its OpenStack data
